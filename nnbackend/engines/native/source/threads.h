/* The threads of one call: started when it begins, joined when it ends. */
#ifndef NNBACKEND_THREADS_H
#define NNBACKEND_THREADS_H

#include "system.h"

#ifdef _WIN32

typedef struct {
    intptr_t n;
} Team;

static void meet(Team *team, void (*then)(void *), void *job) {
    (void)team;
    if (then) then(job);
}

static void run_together(Team *team, void (*work)(void *, intptr_t), void *job, intptr_t n) {
    team->n = n = 1;
    work(job, 0);
}

#else

/* Looks at the generation before a thread sleeps: about 10 microseconds, longer than a barrier
 * takes where all threads run, and short enough to leave the processor to others where they do
 * not. */
#define LOOKS 300

typedef struct {
    intptr_t n;
    atomic_intptr_t arrived, generation, sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t wakes;
} Team;

typedef struct {
    Team *team;
    void (*work)(void *, intptr_t);
    void *job;
    intptr_t number;
} Member;

static inline void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until all threads of the team are here; the last to come runs then(job) before all go on. */
static void meet(Team *team, void (*then)(void *), void *job) {
    if (team->n == 1) {
        if (then) then(job);
        return;
    }
    const intptr_t generation = atomic_load(&team->generation);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->n) {
        if (then) then(job);
        atomic_store(&team->arrived, 0);
        atomic_store(&team->generation, generation + 1);
        if (atomic_load(&team->sleepers) == 0) return;
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->wakes);
        pthread_mutex_unlock(&team->mutex);
        return;
    }
    for (int look = 0; look < LOOKS; look++) {
        if (atomic_load(&team->generation) != generation) return;
        rest();
    }
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->generation) == generation)
        pthread_cond_wait(&team->wakes, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->mutex);
}

static void *begin_member(void *member) {
    Member *own = member;
    pthread_mutex_lock(&own->team->mutex);
    pthread_mutex_unlock(&own->team->mutex);
    own->work(own->job, own->number);
    return NULL;
}

/* Run work(job, number) in n threads, the caller among them; in fewer where none can be started. */
static void run_together(Team *team, void (*work)(void *, intptr_t), void *job, intptr_t n) {
    Member members[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    pthread_attr_t attributes;
    if (n > MOST_THREADS) n = MOST_THREADS;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wakes, NULL);
    atomic_store(&team->arrived, 0);
    atomic_store(&team->generation, 0);
    atomic_store(&team->sleepers, 0);
    /* No thread may begin before it is known how many there are. */
    pthread_mutex_lock(&team->mutex);
    team->n = 1;
    for (intptr_t number = 1; number < n; number++) {
        members[number] = (Member){team, work, job, number};
        if (pthread_create(&threads[number], &attributes, begin_member, &members[number])) break;
        team->n = number + 1;
    }
    const intptr_t started = team->n;
    pthread_attr_destroy(&attributes);
    pthread_mutex_unlock(&team->mutex);
    work(job, 0);
    for (intptr_t number = 1; number < started; number++) pthread_join(threads[number], NULL);
    pthread_cond_destroy(&team->wakes);
    pthread_mutex_destroy(&team->mutex);
}

#endif

/* Work in parts that any thread may do: each takes the parts of its own stretch in their order, so
 * that it meets the same memory in every step, and then what is left of the others', so that a
 * thread whose processor is slower holds nobody up. */
typedef struct {
    struct {
        _Alignas(64) atomic_intptr_t next;
        intptr_t last;
    } stretch[MOST_THREADS];
} Queue;

/* Fill a thread's stretch with parts; no thread may take any meanwhile. */
static void fill(Queue *queue, intptr_t t, intptr_t first, intptr_t last) {
    atomic_store_explicit(&queue->stretch[t].next, first, memory_order_relaxed);
    queue->stretch[t].last = last;
}

/* Return the next part for a thread, -1 if there is none; *turn begins as 0. */
static intptr_t take(Queue *queue, const Team *team, intptr_t t, intptr_t *turn) {
    for (const intptr_t T = team->n; *turn < T; ++*turn) {
        const intptr_t from = (t + *turn) % T;
        const intptr_t part =
            atomic_fetch_add_explicit(&queue->stretch[from].next, 1, memory_order_relaxed);
        if (part < queue->stretch[from].last) return part;
    }
    return -1;
}

#endif
