/* A pool of threads that carry on runs of different networks, each in one thread at a time.
 *
 * Python begins runs, and asks for those that are over, while the threads work. A pool without
 * threads does some work when it is asked.
 */
#include <stdlib.h>

#include "export.h"
#include "system.h"

/* Goes on with a run for about so many seconds; returns whether it is over. */
typedef int (*GoOn)(void *net, void *run, double seconds);

typedef struct {
    GoOn go_on;
    void *net, *run;
} Item;

typedef struct {
    intptr_t capacity, first, n_waiting, n_over, n_working, n_threads;
    Item *waiting; /* a ring */
    void **over;   /* runs */
    double slice;  /* seconds between two looks at whether to stop */
    atomic_int stops;
#ifndef _WIN32
    int ends;
    pthread_mutex_t mutex;
    pthread_cond_t has_work, has_news;
    pthread_t threads[MOST_THREADS];
#endif
} Pool;

static Item take_first(Pool *pool) {
    const Item item = pool->waiting[pool->first];
    pool->first = (pool->first + 1) % pool->capacity;
    pool->n_waiting--;
    return item;
}

#ifdef _WIN32
static void lock(Pool *pool) { (void)pool; }
static void unlock(Pool *pool) { (void)pool; }
#else
static void lock(Pool *pool) { pthread_mutex_lock(&pool->mutex); }
static void unlock(Pool *pool) { pthread_mutex_unlock(&pool->mutex); }

static void *work_in_pool(void *whole) {
    Pool *pool = whole;
    lock(pool);
    for (;;) {
        while (!pool->ends && (pool->n_waiting == 0 || atomic_load(&pool->stops)))
            pthread_cond_wait(&pool->has_work, &pool->mutex);
        if (pool->ends) break;
        const Item item = take_first(pool);
        pool->n_working++;
        unlock(pool);
        while (!item.go_on(item.net, item.run, pool->slice) && !atomic_load(&pool->stops)) continue;
        lock(pool);
        pool->n_working--;
        pool->over[pool->n_over++] = item.run;
        pthread_cond_signal(&pool->has_news);
    }
    unlock(pool);
    return NULL;
}

static void start_threads(Pool *pool, intptr_t n) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    while (pool->n_threads < n && pool->n_threads < MOST_THREADS &&
           !pthread_create(&pool->threads[pool->n_threads], &attributes, work_in_pool, pool))
        pool->n_threads++;
    pthread_attr_destroy(&attributes);
}

/* Wait until a run is over, or for so many seconds. */
static void await_news(Pool *pool, double seconds) {
    struct timespec until;
    timespec_get(&until, TIME_UTC);
    const double whole = (double)until.tv_nsec * 1e-9 + seconds;
    until.tv_sec += (time_t)whole;
    until.tv_nsec = (long)((whole - (double)(time_t)whole) * 1e9);
    while (pool->n_over == 0 && pool->n_working + pool->n_waiting > 0)
        if (pthread_cond_timedwait(&pool->has_news, &pool->mutex, &until)) return;
}
#endif

/* Make a pool for so many runs at most; with fewer than two threads, there are none. */
EXPORT Pool *nnbackend_pool_new(intptr_t n_threads, intptr_t capacity, double slice) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->capacity = capacity, pool->slice = slice;
    pool->waiting = calloc((size_t)capacity, sizeof *pool->waiting);
    pool->over = calloc((size_t)capacity, sizeof *pool->over);
    if (!pool->waiting || !pool->over) {
        free(pool->waiting);
        free(pool->over);
        free(pool);
        return NULL;
    }
#ifndef _WIN32
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    pthread_cond_init(&pool->has_news, NULL);
    if (n_threads > 1) start_threads(pool, n_threads);
#else
    (void)n_threads;
#endif
    return pool;
}

/* Begin a run, or go on with it. The caller keeps to the capacity, counting runs that are over. */
EXPORT void nnbackend_pool_begin(Pool *pool, GoOn go_on, void *net, void *run) {
    lock(pool);
    pool->waiting[(pool->first + pool->n_waiting++) % pool->capacity] = (Item){go_on, net, run};
#ifndef _WIN32
    pthread_cond_signal(&pool->has_work);
#endif
    unlock(pool);
}

/* Write the runs that are over into a list, in whose order they have ended; return how many.
 *
 * Wait for one, but no longer than so many seconds. */
EXPORT intptr_t nnbackend_pool_over(Pool *pool, double seconds, void **runs) {
    lock(pool);
#ifndef _WIN32
    if (pool->n_threads > 0 && seconds > 0) await_news(pool, seconds);
#endif
    if (pool->n_threads == 0 && pool->n_over == 0 && pool->n_waiting > 0 && seconds > 0) {
        const Item item = take_first(pool);
        if (item.go_on(item.net, item.run, seconds)) {
            pool->over[pool->n_over++] = item.run;
        } else {
            pool->first = (pool->first + pool->capacity - 1) % pool->capacity;
            pool->waiting[pool->first] = item;
            pool->n_waiting++;
        }
    }
    const intptr_t n = pool->n_over;
    for (intptr_t i = 0; i < n; i++) runs[i] = pool->over[i];
    pool->n_over = 0;
    unlock(pool);
    return n;
}

/* Stop all runs after the step that they are in. Those that were begun and are not over are
 * forgotten. */
EXPORT void nnbackend_pool_stop(Pool *pool) {
    atomic_store(&pool->stops, 1);
    lock(pool);
#ifndef _WIN32
    while (pool->n_working > 0) pthread_cond_wait(&pool->has_news, &pool->mutex);
#endif
    pool->n_waiting = pool->n_over = 0;
    unlock(pool);
}

EXPORT void nnbackend_pool_free(Pool *pool) {
    nnbackend_pool_stop(pool);
#ifndef _WIN32
    lock(pool);
    pool->ends = 1;
    pthread_cond_broadcast(&pool->has_work);
    unlock(pool);
    for (intptr_t t = 0; t < pool->n_threads; t++) pthread_join(pool->threads[t], NULL);
    pthread_cond_destroy(&pool->has_work);
    pthread_cond_destroy(&pool->has_news);
    pthread_mutex_destroy(&pool->mutex);
#endif
    free(pool->waiting);
    free(pool->over);
    free(pool);
}
