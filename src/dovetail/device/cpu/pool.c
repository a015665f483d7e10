/* The host library: runs step tables on a team of threads. Freestanding: no libc, no allocation, no globals.
 *
 * Memory belongs to the caller (pool.py allocates one zeroed dt_pool per process). Workers are threads of the host
 * language that call dt_worker once and stay there. A call of dt_run claims the workers that are idle at that moment
 * and never waits for others, so concurrent callers share the pool without deadlock or oversubscription.
 */
#include <stdint.h>
#include <stdatomic.h>

#define DT_VERSION 1
#define DT_MAX_WORKERS 63 /* with the caller 64 threads: kernels size their shared scratch for that */
#define DT_LINE 128 /* two cache lines: adjacent-line prefetch makes neighbours share */
#define DT_API __attribute__((visibility("default")))

typedef _Atomic uint32_t word;
typedef void (*dt_kernel)(int64_t tid, int64_t nt, void *const *p, const int64_t *d);

/* One kernel call. max_threads 0: the whole team. */
typedef struct {
    dt_kernel fn;
    void *const *p;
    const int64_t *d;
    uint32_t flags;
    uint32_t max_threads;
} dt_step;

#define DT_NO_BARRIER 1u /* the next step does not depend on this one */

typedef struct {
    const dt_step *steps;
    int64_t n_steps;
    int64_t *stamps; /* n_steps + 1 ticks, or null */
    uint32_t team;
    uint64_t spin;
    _Alignas(DT_LINE) word arrived;   /* at the current barrier */
    _Alignas(DT_LINE) word phase;     /* number of barriers passed; futex */
    word phase_sleepers;
    _Alignas(DT_LINE) word remaining; /* workers still inside the job, and CALLER_SLEEPS; futex */
} dt_job;

#define CALLER_SLEEPS 0x80000000u

enum { ABSENT = 0, IDLE = 1, CLAIMED = 2 };

typedef struct {
    _Alignas(DT_LINE) word state;
    word go;     /* bumped to start the claimed worker, or to stop it; futex */
    word asleep;
    uint32_t tid;
    dt_job *job;
} dt_slot;

typedef struct {
    word stop;
    word n_slots;
    uint64_t spin; /* ticks to spin before sleeping */
    dt_slot slots[DT_MAX_WORKERS];
} dt_pool;

/* --- clock and futex: raw instructions and system calls ------------------------------------------------------ */

#if defined(__x86_64__)
static inline uint64_t ticks(void) {
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}
static inline void relax(void) { __asm__ volatile("pause"); }
#elif defined(__aarch64__)
static inline uint64_t ticks(void) {
    uint64_t t;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
}
static inline void relax(void) { __asm__ volatile("isb"); }
#else
static inline uint64_t ticks(void) { return 0; }
static inline void relax(void) {}
#endif

#if defined(__linux__) && defined(__x86_64__)
#define DT_FUTEX 1
#define SYS_FUTEX 202
#define SYS_CLOCK 228
static inline long syscall4(long n, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return r;
}
#elif defined(__linux__) && defined(__aarch64__)
#define DT_FUTEX 1
#define SYS_FUTEX 98
#define SYS_CLOCK 113
static inline long syscall4(long n, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#define DT_FUTEX 0
#endif

#if DT_FUTEX
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
/* Returns on a wake, on a changed word or on a signal: callers re-check. The timeout is null. */
static inline void sleep_on(word *w, uint32_t seen) { syscall4(SYS_FUTEX, (long)w, FUTEX_WAIT_PRIVATE, seen, 0); }
static inline void wake(word *w, int n) { syscall4(SYS_FUTEX, (long)w, FUTEX_WAKE_PRIVATE, n, 0); }
#else
static inline void sleep_on(word *w, uint32_t seen) { (void)w; (void)seen; relax(); }
static inline void wake(word *w, int n) { (void)w; (void)n; }
#endif

/* Waits until *w differs from `seen`: spins for `spin` ticks, then sleeps. `sleepers` counts who may need a wake.
 * The waker changes *w and then reads *sleepers, both sequentially consistent, so one of the two sees the other. */
static void await_change(word *w, uint32_t seen, word *sleepers, uint64_t spin) {
    uint64_t start = ticks();
    do {
        for (int i = 0; i < 16; i++) {
            if (atomic_load_explicit(w, memory_order_acquire) != seen) return;
            relax();
        }
    } while (ticks() - start < spin);
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(w) == seen) sleep_on(w, seen);
    atomic_fetch_sub(sleepers, 1);
}

/* --- running a step table --------------------------------------------------------------------------------------- */

static void barrier(dt_job *job) {
    uint32_t phase = atomic_load_explicit(&job->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&job->arrived, 1, memory_order_acq_rel) + 1 == job->team) {
        atomic_store_explicit(&job->arrived, 0, memory_order_relaxed);
        atomic_fetch_add(&job->phase, 1);
        if (atomic_load(&job->phase_sleepers)) wake(&job->phase, DT_MAX_WORKERS);
    } else {
        await_change(&job->phase, phase, &job->phase_sleepers, job->spin);
    }
}

static inline uint32_t width(const dt_job *job, int64_t i) {
    uint32_t limit = job->steps[i].max_threads;
    return limit && limit < job->team ? limit : job->team;
}

/* Every member of the team runs this; the decisions about barriers are the same in each. */
static void run_steps(dt_job *job, uint32_t tid) {
    uint32_t wide = 0; /* whether any step since the last barrier ran on more than one thread */
    if (job->stamps && tid == 0) job->stamps[0] = (int64_t)ticks();
    for (int64_t i = 0; i < job->n_steps; i++) {
        const dt_step *step = &job->steps[i];
        uint32_t n = width(job, i);
        if (tid < n) step->fn(tid, n, step->p, step->d);
        wide |= n > 1;
        if (job->team > 1 && i + 1 < job->n_steps && !(step->flags & DT_NO_BARRIER)) {
            /* thread 0 alone ran what came before and runs the next step too: its own order suffices */
            if (wide || width(job, i + 1) > 1) {
                barrier(job);
                wide = 0;
            }
        }
        if (job->stamps && tid == 0) job->stamps[i + 1] = (int64_t)ticks();
    }
}

/* The last access to the job by a worker: once `remaining` is 0 the caller may return and its frame be gone, so the
 * question whether the caller sleeps is answered by the same atomic operation, and `wake` uses the address only. */
static void leave(dt_job *job) {
    if (atomic_fetch_sub(&job->remaining, 1) == (CALLER_SLEEPS | 1)) wake(&job->remaining, 1);
}

static void join(dt_job *job) {
    uint64_t start = ticks();
    do {
        for (int i = 0; i < 16; i++) {
            if (atomic_load_explicit(&job->remaining, memory_order_acquire) == 0) return;
            relax();
        }
    } while (ticks() - start < job->spin);
    uint32_t left = atomic_fetch_or(&job->remaining, CALLER_SLEEPS) | CALLER_SLEEPS;
    while (left != CALLER_SLEEPS) {
        sleep_on(&job->remaining, left);
        left = atomic_load(&job->remaining);
    }
}

static void init_job(dt_job *job, const dt_step *steps, int64_t n_steps, uint32_t team, uint64_t spin, int64_t *stamps) {
    job->steps = steps;
    job->n_steps = n_steps;
    job->stamps = stamps;
    job->team = team;
    job->spin = spin;
    atomic_init(&job->arrived, 0);
    atomic_init(&job->phase, 0);
    atomic_init(&job->phase_sleepers, 0);
    atomic_init(&job->remaining, team - 1);
}

/* --- exported ------------------------------------------------------------------------------------------------------ */

DT_API int64_t dt_version(void) { return DT_VERSION; }
DT_API int64_t dt_has_futex(void) { return DT_FUTEX; }
DT_API int64_t dt_pool_size(void) { return sizeof(dt_pool); }
DT_API int64_t dt_job_size(void) { return sizeof(dt_job); }
DT_API int64_t dt_max_workers(void) { return DT_MAX_WORKERS; }
DT_API int64_t dt_ticks(void) { return (int64_t)ticks(); }

/* Nanoseconds of CLOCK_MONOTONIC, or -1 where there is no such call. */
DT_API int64_t dt_nanoseconds(void) {
#if DT_FUTEX
    struct { int64_t s, ns; } t;
    if (syscall4(SYS_CLOCK, 1, (long)&t, 0, 0)) return -1;
    return t.s * 1000000000 + t.ns;
#else
    return -1;
#endif
}

/* The life of worker `index`; returns when the pool stops. */
DT_API void dt_worker(dt_pool *pool, int64_t index) {
    dt_slot *slot = &pool->slots[index];
    uint32_t seen = atomic_load(&slot->go);
    atomic_store(&slot->state, IDLE);
    for (;;) {
        uint32_t idle = IDLE;
        /* A worker that was claimed in the meantime must serve: its caller counts on it. */
        if (atomic_load(&pool->stop) && atomic_compare_exchange_strong(&slot->state, &idle, ABSENT)) return;
        await_change(&slot->go, seen, &slot->asleep, pool->spin);
        seen = atomic_load(&slot->go);
        if (atomic_load(&slot->state) != CLAIMED) return; /* stopped */
        dt_job *job = slot->job;
        run_steps(job, slot->tid);
        /* Idle before leaving: the caller's next call must find this worker. */
        atomic_store(&slot->state, IDLE);
        leave(job);
    }
}

/* The number of workers that have arrived, idle or busy. */
DT_API int64_t dt_present(dt_pool *pool) {
    int64_t n = 0;
    uint32_t slots = atomic_load(&pool->n_slots);
    for (uint32_t i = 0; i < slots; i++) n += atomic_load(&pool->slots[i].state) != ABSENT;
    return n;
}

/* Tells every worker to return. Calls in progress finish first. */
DT_API void dt_stop(dt_pool *pool) {
    atomic_store(&pool->stop, 1);
    for (uint32_t i = 0; i < DT_MAX_WORKERS; i++) {
        dt_slot *slot = &pool->slots[i];
        uint32_t idle = IDLE;
        /* A claimed worker finishes its job first and then sees `stop`. */
        if (atomic_compare_exchange_strong(&slot->state, &idle, ABSENT)) {
            atomic_fetch_add(&slot->go, 1);
            wake(&slot->go, 1);
        }
    }
}

/* Runs the table on at most `threads` threads, the calling one included. Returns the size of the team. */
DT_API int64_t dt_run(dt_pool *pool, const dt_step *steps, int64_t n_steps, int64_t threads, int64_t *stamps) {
    dt_job job;
    uint32_t claimed[DT_MAX_WORKERS];
    uint32_t n = 0;
    if (threads > 1 && pool) {
        uint32_t slots = atomic_load_explicit(&pool->n_slots, memory_order_acquire);
        for (uint32_t i = 0; i < slots && (int64_t)n + 1 < threads; i++) {
            uint32_t idle = IDLE;
            if (atomic_load_explicit(&pool->slots[i].state, memory_order_relaxed) == IDLE &&
                atomic_compare_exchange_strong(&pool->slots[i].state, &idle, CLAIMED))
                claimed[n++] = i;
        }
    }
    init_job(&job, steps, n_steps, n + 1, pool ? pool->spin : 0, stamps);
    for (uint32_t k = 0; k < n; k++) {
        dt_slot *slot = &pool->slots[claimed[k]];
        slot->job = &job;
        slot->tid = k + 1;
        atomic_fetch_add(&slot->go, 1);
        if (atomic_load(&slot->asleep)) wake(&slot->go, 1);
    }
    run_steps(&job, 0);
    if (n) join(&job);
    return n + 1;
}

/* For hosts without futex, where the host language wakes its own workers: one job, entered by each member. */
DT_API void dt_job_init(dt_job *job, const dt_step *steps, int64_t n_steps, int64_t team, int64_t *stamps) {
    init_job(job, steps, n_steps, (uint32_t)team, 0, stamps);
}
DT_API void dt_job_enter(dt_job *job, int64_t tid) {
    run_steps(job, (uint32_t)tid);
    if (tid) leave(job);
}
DT_API void dt_job_join(dt_job *job) { join(job); }

#ifdef _WIN32
int DllMainCRTStartup(void *module, unsigned long reason, void *reserved) {
    (void)module; (void)reason; (void)reserved;
    return 1;
}
#endif
