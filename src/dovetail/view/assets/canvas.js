// A canvas that can be panned and zoomed, by mouse, touch and keyboard.

class Surface {
  /** `paint(context, surface)` draws in world coordinates; `width` and `height` are the world's. */
  constructor(canvas, paint, { click, hover, moved }) {
    Object.assign(this, { canvas, paint, click, hover, moved, scale: 1, x: 0, y: 0, width: 1, height: 1, queued: false });
    this.context = canvas.getContext("2d");
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => this.hover(null, null));
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.w = this.canvas.clientWidth;
    this.h = this.canvas.clientHeight;
    this.canvas.width = Math.max(1, Math.round(this.w * ratio));
    this.canvas.height = Math.max(1, Math.round(this.h * ratio));
    this.draw();
  }

  draw() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      if (!this.w) return;
      const ratio = devicePixelRatio || 1;
      const c = this.context;
      c.setTransform(1, 0, 0, 1, 0, 0);
      c.clearRect(0, 0, this.canvas.width, this.canvas.height);
      c.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
      this.paint(c, this);
      this.moved?.();
    });
  }

  /** The world's rectangle that is seen. */
  seen() {
    return {
      left: -this.x / this.scale,
      top: -this.y / this.scale,
      right: (this.w - this.x) / this.scale,
      bottom: (this.h - this.y) / this.scale,
    };
  }

  world(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left - this.x) / this.scale, (event.clientY - box.top - this.y) / this.scale];
  }

  zoom(factor, atX = this.w / 2, atY = this.h / 2) {
    const scale = Math.min(4, Math.max(0.004, this.scale * factor));
    this.x = atX - ((atX - this.x) * scale) / this.scale;
    this.y = atY - ((atY - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.draw();
  }

  /** Show the whole world, at most at its natural size. */
  fit(margin = 46) {
    this.scale = Math.min(1, (this.w - 2 * margin) / this.width, (this.h - 2 * margin) / this.height);
    this.x = (this.w - this.width * this.scale) / 2;
    this.y = (this.h - this.height * this.scale) / 2;
    this.draw();
  }

  /** Move a place of the world to the middle. */
  centre(x, y, scale = this.scale) {
    this.scale = scale;
    this.x = this.w / 2 - x * scale;
    this.y = this.h / 2 - y * scale;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    if (event.shiftKey) this.pan(-event.deltaY, 0);
    else this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.dragged = this.pointers.size > 1;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.hover(event, this.world(event));
    const other = [...this.pointers.values()].find((p) => p.pointerId !== event.pointerId);
    if (other) {
      const apart = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
      const box = this.canvas.getBoundingClientRect();
      this.zoom(
        apart(event) / apart(before),
        (event.clientX + other.clientX) / 2 - box.left,
        (event.clientY + other.clientY) / 2 - box.top,
      );
    } else if (this.dragged || Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) > 3) {
      this.dragged = true;
      this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    } else return;
    this.pointers.set(event.pointerId, event);
    this.hover(null, null);
  }

  up(event) {
    const mine = this.pointers.delete(event.pointerId);
    if (mine && !this.dragged && event.type === "pointerup") this.click(event, this.world(event));
    if (!this.pointers.size) this.dragged = false;
  }
}
