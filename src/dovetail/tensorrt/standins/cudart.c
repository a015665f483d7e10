/* A CUDA runtime over host memory: what clients of TensorRT allocate and copy with, where there is no GPU.
 *
 * "Device" memory is pages of this process. A table holds every allocation, stream and event; a copy that does not lie
 * within one allocation, or that reads or writes host memory that is not mapped, fails with the code that CUDA gives.
 * Work is done before a call returns, so streams only have to exist. No libc: pages come from the kernel.
 * `device.py` puts two tables before this text: `errors[]` (code, name, text) and `attributes[]` (attribute, value).
 */
#include <stddef.h>
#include <stdint.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400, NOT_SUPPORTED = 801
};
/* cudaMemoryType, then what else a handle may be. */
enum { HOST = 1, DEVICE = 2, MANAGED = 3, REGISTERED = 4, STREAM = 16, EVENT = 17, POOL = 18 };
enum { PAGE = 4096 };

typedef struct { uintptr_t base; size_t size; int64_t kind; } Entry;
typedef struct { int64_t seconds, nanoseconds; } Time;
typedef struct { int64_t recorded; Time time; } Event;

/* ---- the kernel ---- */

#if defined(__x86_64__)
enum { SYS_MMAP = 9, SYS_MUNMAP = 11, SYS_YIELD = 24, SYS_MINCORE = 27, SYS_SYSINFO = 99, SYS_CLOCK = 228 };
static long kernel(long n, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
enum { SYS_CLOCK = 113, SYS_YIELD = 124, SYS_SYSINFO = 179, SYS_MUNMAP = 215, SYS_MMAP = 222, SYS_MINCORE = 232 };
static long kernel(long n, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "the stand-in knows x86_64 and aarch64"
#endif

static size_t whole(size_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

static void *map(size_t size) {
    long at = kernel(SYS_MMAP, 0, (long)whole(size), 3, 0x22, -1, 0); /* read and write; private, anonymous */
    return at < 0 && at > -PAGE ? NULL : (void *)at;
}

static void unmap(uintptr_t base, size_t size) { kernel(SYS_MUNMAP, (long)base, (long)whole(size), 0, 0, 0, 0); }

/* Whether all of [base, base + size) is mapped; the kernel says so without touching it. */
static int mapped(uintptr_t base, size_t size) {
    static unsigned char resident[PAGE];
    uintptr_t at = base / PAGE * PAGE, end = base + size;
    if (!base || end < base) return 0;
    while (at < end) {
        size_t part = end - at;
        if (part > (size_t)PAGE * PAGE) part = (size_t)PAGE * PAGE;
        if (kernel(SYS_MINCORE, (long)at, (long)part, (long)resident, 0, 0, 0) == -12) return 0;
        at += part;
    }
    return 1;
}

typedef struct { long uptime; unsigned long loads[3], total, free, shared, buffer, swap[2]; unsigned short processes, pad; unsigned long high[2]; unsigned int unit; char rest[64]; } Info;

static void memory(size_t *total, size_t *available) {
    Info info;
    kernel(SYS_SYSINFO, (long)&info, 0, 0, 0, 0, 0);
    *total = (size_t)info.total * info.unit;
    *available = (size_t)info.free * info.unit;
}

/* ---- the table, sorted by address ---- */

static Entry *table;
static size_t used, room, bytes;
static Entry *exposed; /* memory of an engine that its client may copy from and to for a while; may repeat */
static size_t n_exposed, exposed_room;
static int taken;
static int last;

static void lock(void) {
    while (__atomic_exchange_n(&taken, 1, __ATOMIC_ACQUIRE)) kernel(SYS_YIELD, 0, 0, 0, 0, 0, 0);
}

static void unlock(void) { __atomic_store_n(&taken, 0, __ATOMIC_RELEASE); }

static int done(int code) {
    if (code) __atomic_store_n(&last, code, __ATOMIC_RELAXED);
    return code;
}

static int grow(Entry **entries, size_t count, size_t *limit) {
    if (count < *limit) return 1;
    size_t wanted = *limit ? 2 * *limit : 4 * PAGE / sizeof(Entry);
    Entry *fresh = map(wanted * sizeof(Entry));
    if (!fresh) return 0;
    for (size_t i = 0; i < count; i++) fresh[i] = (*entries)[i];
    if (*entries) unmap((uintptr_t)*entries, *limit * sizeof(Entry));
    *entries = fresh;
    *limit = wanted;
    return 1;
}

/* The place of the first entry that begins above `address`. */
static size_t above(uintptr_t address) {
    size_t low = 0, high = used;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table[middle].base <= address) low = middle + 1;
        else high = middle;
    }
    return low;
}

static Entry *find(uintptr_t address) {
    size_t place = above(address);
    if (!place) return NULL;
    Entry *entry = &table[place - 1];
    return address - entry->base < (entry->size ? entry->size : 1) ? entry : NULL;
}

static int insert(uintptr_t base, size_t size, int kind) {
    if (!grow(&table, used, &room)) return 0;
    size_t place = above(base);
    for (size_t i = used; i > place; i--) table[i] = table[i - 1];
    table[place] = (Entry){base, size, kind};
    used++;
    bytes += size;
    return 1;
}

static void drop(Entry *entry) {
    bytes -= entry->size;
    used--;
    for (size_t i = (size_t)(entry - table); i < used; i++) table[i] = table[i + 1];
}

static int allocate(void **result, size_t size, int kind) {
    if (!result) return INVALID_VALUE;
    *result = NULL;
    if (!size) return SUCCESS;
    size_t total, available;
    memory(&total, &available);
    lock();
    int code = OUT_OF_MEMORY;
    if (size <= total && bytes + size <= total) {
        void *at = map(size);
        if (at && !insert((uintptr_t)at, size, kind)) unmap((uintptr_t)at, size);
        else if (at) {
            *result = at;
            code = SUCCESS;
        }
    }
    unlock();
    return code;
}

static int release(uintptr_t address, int64_t first, int64_t second, int code) {
    lock();
    Entry *entry = find(address);
    if (entry && entry->base == address && (entry->kind == first || entry->kind == second)) {
        if (entry->kind != REGISTERED) unmap(entry->base, entry->size);
        drop(entry);
        code = SUCCESS;
    }
    unlock();
    return code;
}

static int is(uintptr_t handle, int64_t kind) {
    lock();
    Entry *entry = find(handle);
    int found = entry && entry->base == handle && entry->kind == kind;
    unlock();
    return found;
}

/* 0, 1 and 2 are the streams that always exist. */
static int is_stream(uintptr_t handle) { return handle <= 2 || is(handle, STREAM); }

/* ---- copies ---- */

/* What the compiler must not make calls of memcpy or memset of: nobody here has them. */
typedef uint64_t __attribute__((aligned(1), may_alias)) Word;

static void move(char *to, const char *from, size_t size) {
    if ((uintptr_t)to - (uintptr_t)from >= size) {
        for (; size >= 8; size -= 8, to += 8, from += 8) *(volatile Word *)to = *(const volatile Word *)from;
        for (; size; size--) *(volatile char *)to++ = *(const volatile char *)from++;
    } else {
        for (; size >= 8; size -= 8) *(volatile Word *)(to + size - 8) = *(const volatile Word *)(from + size - 8);
        for (; size; size--) ((volatile char *)to)[size - 1] = ((const volatile char *)from)[size - 1];
    }
}

static void fill(char *to, int value, size_t size) {
    uint64_t word = 0x0101010101010101ull * (unsigned char)value;
    for (; size >= 8; size -= 8, to += 8) *(volatile Word *)to = word;
    for (; size; size--) *(volatile char *)to++ = (char)value;
}

/* Whether [address, address + size) may stand at this end of a copy; `device`: 1, 0, or -1 for either. */
static int valid(uintptr_t address, size_t size, int device) {
    lock();
    Entry *entry = find(address);
    int code;
    if (entry) {
        int64_t kind = entry->kind;
        code = kind < STREAM && size <= entry->size - (address - entry->base) && !(device == 0 && kind == DEVICE);
    } else {
        code = 0;
        for (size_t i = 0; i < n_exposed && !code; i++)
            code = address >= exposed[i].base && size <= exposed[i].size && address - exposed[i].base <= exposed[i].size - size;
        /* Host memory that no allocation is known of must at least be there, and run into no allocation of ours. */
        if (!code && device != 1) {
            size_t next = above(address);
            code = mapped(address, size) && !(next < used && table[next].base - address < size);
        }
    }
    unlock();
    return code;
}

static int copy(void *to, const void *from, size_t size, int kind) {
    static const signed char targets[] = {0, 1, 0, 1, -1}, sources[] = {0, 0, 1, 1, -1};
    if (kind < 0 || kind > 4) return 21; /* cudaErrorInvalidMemcpyDirection */
    if (!size) return SUCCESS;
    if (!valid((uintptr_t)to, size, targets[kind]) || !valid((uintptr_t)from, size, sources[kind])) return INVALID_VALUE;
    move(to, from, size);
    return SUCCESS;
}

static int set(void *to, int value, size_t size) {
    if (!size) return SUCCESS;
    if (!valid((uintptr_t)to, size, 1)) return INVALID_VALUE;
    fill(to, value, size);
    return SUCCESS;
}

/* ---- memory ---- */

int cudaMalloc(void **result, size_t size) { return done(allocate(result, size, DEVICE)); }

int cudaMallocManaged(void **result, size_t size, unsigned flags) {
    return done(flags == 1 || flags == 2 ? allocate(result, size, MANAGED) : INVALID_VALUE);
}

int cudaMallocHost(void **result, size_t size) { return done(allocate(result, size, HOST)); }
int cudaHostAlloc(void **result, size_t size, unsigned flags) { return done(flags > 7 ? INVALID_VALUE : allocate(result, size, HOST)); }

int cudaMallocAsync(void **result, size_t size, void *stream) {
    return done(is_stream((uintptr_t)stream) ? allocate(result, size, DEVICE) : INVALID_HANDLE);
}

int cudaFree(void *at) { return done(at ? release((uintptr_t)at, DEVICE, MANAGED, INVALID_VALUE) : SUCCESS); }
int cudaFreeHost(void *at) { return done(at ? release((uintptr_t)at, HOST, HOST, INVALID_VALUE) : SUCCESS); }

int cudaFreeAsync(void *at, void *stream) {
    return is_stream((uintptr_t)stream) ? cudaFree(at) : done(INVALID_HANDLE);
}

int cudaHostRegister(void *at, size_t size, unsigned flags) {
    (void)flags;
    if (!size || !valid((uintptr_t)at, size, 0)) return done(INVALID_VALUE);
    lock();
    int code = find((uintptr_t)at) ? 712 : insert((uintptr_t)at, size, REGISTERED) ? SUCCESS : OUT_OF_MEMORY;
    unlock();
    return done(code); /* 712: already registered */
}

int cudaHostUnregister(void *at) { return done(release((uintptr_t)at, REGISTERED, REGISTERED, 713)); }

int cudaHostGetDevicePointer(void **result, void *at, unsigned flags) {
    (void)flags;
    lock();
    Entry *entry = find((uintptr_t)at);
    int known = entry && (entry->kind == HOST || entry->kind == MANAGED || entry->kind == REGISTERED);
    unlock();
    if (!result || !known) return done(INVALID_VALUE);
    *result = at;
    return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return done(copy(to, from, size, kind)); }

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return done(is_stream((uintptr_t)stream) ? copy(to, from, size, kind) : INVALID_HANDLE);
}

int cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind) {
    if (width > to_pitch || width > from_pitch) return done(12); /* cudaErrorInvalidPitchValue */
    for (size_t row = 0; row < height; row++) {
        int code = copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, kind);
        if (code) return done(code);
    }
    return SUCCESS;
}

int cudaMemset(void *to, int value, size_t size) { return done(set(to, value, size)); }

int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
    return done(is_stream((uintptr_t)stream) ? set(to, value, size) : INVALID_HANDLE);
}

int cudaMemGetInfo(size_t *available, size_t *total) {
    if (!available || !total) return done(INVALID_VALUE);
    memory(total, available);
    return SUCCESS;
}

/* ---- streams, events, pools: handles are pages of their own, so that no two are ever alike ---- */

int cudaStreamCreate(void **result) { return done(allocate(result, sizeof(Event), STREAM)); }
int cudaStreamCreateWithFlags(void **result, unsigned flags) { return done(flags > 1 ? INVALID_VALUE : allocate(result, sizeof(Event), STREAM)); }
int cudaStreamCreateWithPriority(void **result, unsigned flags, int priority) { (void)priority; return cudaStreamCreateWithFlags(result, flags); }
int cudaStreamDestroy(void *stream) { return done(release((uintptr_t)stream, STREAM, STREAM, INVALID_HANDLE)); }
int cudaStreamSynchronize(void *stream) { return done(is_stream((uintptr_t)stream) ? SUCCESS : INVALID_HANDLE); }
int cudaStreamQuery(void *stream) { return cudaStreamSynchronize(stream); }

int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)flags;
    return done(is_stream((uintptr_t)stream) && is((uintptr_t)event, EVENT) ? SUCCESS : INVALID_HANDLE);
}

int cudaStreamIsCapturing(void *stream, int *status) {
    if (!status) return done(INVALID_VALUE);
    *status = 0;
    return cudaStreamSynchronize(stream);
}

/* Kernels cannot be recorded, since there are none. */
int cudaStreamBeginCapture(void *stream, int mode) {
    (void)mode;
    return done(is_stream((uintptr_t)stream) ? NOT_SUPPORTED : INVALID_HANDLE);
}

int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    if (!function) return done(INVALID_VALUE);
    if (!is_stream((uintptr_t)stream)) return done(INVALID_HANDLE);
    function(data);
    return SUCCESS;
}

int cudaEventCreateWithFlags(void **result, unsigned flags) { return done(flags > 7 ? INVALID_VALUE : allocate(result, sizeof(Event), EVENT)); }
int cudaEventCreate(void **result) { return cudaEventCreateWithFlags(result, 0); }
int cudaEventDestroy(void *event) { return done(release((uintptr_t)event, EVENT, EVENT, INVALID_HANDLE)); }
int cudaEventSynchronize(void *event) { return done(is((uintptr_t)event, EVENT) ? SUCCESS : INVALID_HANDLE); }
int cudaEventQuery(void *event) { return cudaEventSynchronize(event); }

int cudaEventRecord(void *event, void *stream) {
    if (!is((uintptr_t)event, EVENT) || !is_stream((uintptr_t)stream)) return done(INVALID_HANDLE);
    Event *at = event;
    kernel(SYS_CLOCK, 1, (long)&at->time, 0, 0, 0, 0); /* monotonic */
    at->recorded = 1;
    return SUCCESS;
}

int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { (void)flags; return cudaEventRecord(event, stream); }

int cudaEventElapsedTime(float *milliseconds, void *start, void *end) {
    if (!milliseconds) return done(INVALID_VALUE);
    if (!is((uintptr_t)start, EVENT) || !is((uintptr_t)end, EVENT)) return done(INVALID_HANDLE);
    Event *a = start, *b = end;
    if (!a->recorded || !b->recorded) return done(INVALID_HANDLE);
    *milliseconds = (float)((double)(b->time.seconds - a->time.seconds) * 1e3 + (double)(b->time.nanoseconds - a->time.nanoseconds) * 1e-6);
    return SUCCESS;
}

int cudaMemPoolCreate(void **result, const void *properties) { (void)properties; return done(allocate(result, sizeof(Event), POOL)); }
int cudaMemPoolDestroy(void *pool) { return done(release((uintptr_t)pool, POOL, POOL, INVALID_VALUE)); }
int cudaMemPoolTrimTo(void *pool, size_t size) { (void)size; return done(is((uintptr_t)pool, POOL) ? SUCCESS : INVALID_VALUE); }

int cudaDeviceGetDefaultMemPool(void **result, int device) {
    static void *pool;
    if (device) return done(INVALID_DEVICE);
    if (!result) return done(INVALID_VALUE);
    void *known = __atomic_load_n(&pool, __ATOMIC_ACQUIRE), *fresh;
    if (!is((uintptr_t)known, POOL)) { /* none yet, or gone by a reset */
        int code = allocate(&fresh, sizeof(Event), POOL);
        if (code) return done(code);
        if (!__atomic_compare_exchange_n(&pool, &known, fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) cudaMemPoolDestroy(fresh);
    }
    *result = __atomic_load_n(&pool, __ATOMIC_ACQUIRE);
    return SUCCESS;
}

int cudaMallocFromPoolAsync(void **result, size_t size, void *pool, void *stream) {
    return is((uintptr_t)pool, POOL) ? cudaMallocAsync(result, size, stream) : done(INVALID_VALUE);
}

/* ---- the device ---- */

int cudaGetDeviceCount(int *count) { return count ? (*count = 1, SUCCESS) : done(INVALID_VALUE); }
int cudaSetDevice(int device) { return done(device ? INVALID_DEVICE : SUCCESS); }
int cudaGetDevice(int *device) { return device ? (*device = 0, SUCCESS) : done(INVALID_VALUE); }
int cudaSetDeviceFlags(unsigned flags) { (void)flags; return SUCCESS; }
int cudaDeviceSynchronize(void) { return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { return version ? (*version = 12080, SUCCESS) : done(INVALID_VALUE); }
int cudaDriverGetVersion(int *version) { return cudaRuntimeGetVersion(version); }

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = 0;
    return SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    if (!value) return done(INVALID_VALUE);
    if (device) return done(INVALID_DEVICE);
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        if (attributes[i].attribute == attribute) return *value = attributes[i].value, SUCCESS;
    return done(INVALID_VALUE);
}

/* All that was allocated is gone. */
int cudaDeviceReset(void) {
    lock();
    while (used) {
        Entry *entry = &table[used - 1];
        if (entry->kind != REGISTERED) unmap(entry->base, entry->size);
        drop(entry);
    }
    unlock();
    return SUCCESS;
}

/* ---- errors ---- */

static const char *described(int code, int text) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return text ? errors[i].text : errors[i].name;
    return "unrecognized error code";
}

const char *cudaGetErrorName(int code) { return described(code, 0); }
const char *cudaGetErrorString(int code) { return described(code, 1); }
int cudaPeekAtLastError(void) { return __atomic_load_n(&last, __ATOMIC_RELAXED); }
int cudaGetLastError(void) { return __atomic_exchange_n(&last, 0, __ATOMIC_RELAXED); }

/* ---- for Dovetail itself ---- */

/* The allocation that holds `address`: its kind, or 0; its extent in base and size. */
int dovetail_find(const void *address, uintptr_t *base, size_t *size) {
    lock();
    Entry *entry = find((uintptr_t)address);
    int kind = entry ? (int)entry->kind : 0;
    if (entry) {
        *base = entry->base;
        *size = entry->size;
    }
    unlock();
    return kind;
}

/* Let clients copy from and to memory of an engine, until it is concealed as often. */
int dovetail_expose(const void *address, size_t size) {
    lock();
    int fits = grow(&exposed, n_exposed, &exposed_room);
    if (fits) exposed[n_exposed++] = (Entry){(uintptr_t)address, size, DEVICE};
    unlock();
    return fits ? SUCCESS : OUT_OF_MEMORY;
}

int dovetail_conceal(const void *address, size_t size) {
    int code = INVALID_VALUE;
    lock();
    for (size_t i = n_exposed; i-- > 0;)
        if (exposed[i].base == (uintptr_t)address && exposed[i].size == size) {
            exposed[i] = exposed[--n_exposed];
            code = SUCCESS;
            break;
        }
    unlock();
    return code;
}
