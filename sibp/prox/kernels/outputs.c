/* Passes over the outputs of a convolution; see outputs.py. Arrays are N x M: a row is a position of a sample, with its M
 * numbers, one per neuron, side by side, the layout in which convolutions are fastest. Sums over rows and scale factors have
 * one number per neuron. */

#include "activations.h"
#include "transpose.h"

typedef struct {
    long N, M, threads, kind; /* `kind` is the activation's */
    REAL a;                   /* slope of PIECES below zero */
} Shape;
#define INLINE static inline __attribute__((always_inline)) void
#define SHORTEST 256 /* numbers in a stripe */
#define STRIPES 32   /* in a chunk */

/* Rows are processed in stripes of as many as fill whole vectors. Numbers per neuron are repeated to the length of a
 * stripe, and sums are as long, so that a loop over a stripe needs no index of neurons. */
static long rows_of_stripe(long M)
{
    long rows = 1;
    while (rows * M % LANES || rows * M < SHORTEST) rows++;
    return rows;
}

static long chunks_of(long N, long M) { return (N + STRIPES * rows_of_stripe(M) - 1) / (STRIPES * rows_of_stripe(M)); }

/* The size of a pass's workspace: repeated numbers, and the sums of each chunk, or of each sample. */
long KERNEL(outputs_size)(long N, long M, long B)
{
    const long chunks = chunks_of(N, M);
    return rows_of_stripe(M) * M * (2 + 2 * (chunks > B ? chunks : B));
}

static void spread(const REAL *t, long M, REAL *table)
{
    for (long row = 0; row < rows_of_stripe(M); row++) memcpy(table + row * M, t, M * sizeof(REAL));
}

/* out = the sums for M neurons, from those of `parts` stripes, which begin `step` numbers apart. */
static void add_up(const REAL *sums, long parts, long step, long M, double *out)
{
    for (long j = 0; j < M; j++) out[j] = 0;
    for (long part = 0; part < parts; part++)
        for (long row = 0; row < rows_of_stripe(M); row++)
            for (long j = 0; j < M; j++) out[j] += sums[part * step + row * M + j];
}

/* Loops over the stripes of rows `first` to `last`: each has `length` numbers from `place` on. */
#define EACH_STRIPE(M, first, last) \
    for (long n = first, rows = rows_of_stripe(M), place = n * (M), length = least(rows, (last) - n) * (M); n < (last); \
         n += rows, place = n * (M), length = least(rows, (last) - n) * (M))

/* Runs `call` for each chunk of rows, `first` to `last`; each chunk has separate sums, which are then added up. The kind is
 * chosen inside the parallel loop: compilers outline its body into a function, where a constant from outside would be a
 * variable. */
#define CHUNKS(shape, sums, found, call) \
    const long stripe = rows_of_stripe(shape->M) * shape->M, chunk = STRIPES * rows_of_stripe(shape->M); \
    const long chunks = chunks_of(shape->N, shape->M); \
    SHARED(shape->threads) \
    for (long k = 0; k < chunks; k++) { \
        const long first = k * chunk, last = least(first + chunk, shape->N); \
        REAL *S = sums + k * stripe; \
        memset(S, 0, stripe * sizeof(REAL)); \
        BY_KIND(shape->kind, call) \
    } \
    add_up(sums, chunks, stripe, shape->M, found);

INLINE begin(
    long M, REAL a, long first, long last, const REAL *Z, REAL eta, long shifted, REAL *T, REAL *E, REAL *S, REAL *S2,
    const int kind)
{
    EACH_STRIPE(M, first, last)
        EACH(i, length) {
            const Point s = at(Z[place + i], a, kind);
            const REAL to = shifted ? s.value - eta * T[place + i] : T[place + i], e = s.value - to;
            T[place + i] = to;
            E[place + i] = e * s.slope;
            S[i] += e * e;
            S2[i] += to * to;
        }
}

/* Copies from_Z and from_T, of B samples with P positions each: as they are, or from B x M x P (`transposed`). With `shifted`,
 * from_T is D, and T = s(Z) - eta D. E = (s(Z) - T) s'(Z); found: ||s(Z) - T||^2 and ||T||^2, M numbers each. */
void KERNEL(begin)(
    const Shape *shape, long B, const REAL *from_Z, long transposed_Z, const REAL *from_T, long transposed_T, long shifted,
    double eta, REAL *Z, REAL *T, REAL *E, REAL *work, double *found)
{
    const long M = shape->M, P = B ? shape->N / B : 0, stripe = rows_of_stripe(M) * M;
    REAL *sums = work;
    SHARED(shape->threads)
    for (long k = 0; k < B; k++) {
        const long first = k * P, last = first + P, all = P * M;
        REAL *S = sums + 2 * k * stripe, *S2 = S + stripe;
        memset(S, 0, 2 * stripe * sizeof(REAL));
        if (transposed_Z) transpose(from_Z + first * M, P, M, P, Z + first * M, M);
        else memcpy(Z + first * M, from_Z + first * M, all * sizeof(REAL));
        if (transposed_T) transpose(from_T + first * M, P, M, P, T + first * M, M);
        else memcpy(T + first * M, from_T + first * M, all * sizeof(REAL));
#define CALL(kind) begin(M, shape->a, first, last, Z, (REAL)eta, shifted, T, E, S, S2, kind)
        BY_KIND(shape->kind, CALL)
#undef CALL
    }
    add_up(sums, B, 2 * stripe, M, found);
    add_up(sums + stripe, B, 2 * stripe, M, found + M);
}

INLINE direct(long M, REAL a, long first, long last, const REAL *Z, REAL *KP, REAL *S, const int kind)
{
    EACH_STRIPE(M, first, last)
        EACH(i, length) {
            const REAL d = -KP[place + i], sd = at(Z[place + i], a, kind).slope * d;
            KP[place + i] = d;
            S[i] += sd * sd;
        }
}

/* The first direction: KP, given as KG, becomes -KG; curvature = ||s'(Z) KP||^2. */
void KERNEL(direct)(const Shape *shape, const REAL *Z, REAL *KP, REAL *work, double *curvature)
{
#define CALL(kind) direct(shape->M, shape->a, first, last, Z, KP, S, kind)
    CHUNKS(shape, work, curvature, CALL)
#undef CALL
}

INLINE redirect(
    long M, REAL a, long first, long last, REAL *Z, const REAL *KG, const REAL *t, const REAL *beta, REAL *KP, REAL *S,
    const int kind)
{
    EACH_STRIPE(M, first, last)
        EACH(i, length) {
            const REAL z = t[i] != 0 ? Z[place + i] + t[i] * KP[place + i] : Z[place + i]; /* KP may be infinite */
            const REAL d = beta[i] * KP[place + i] - KG[place + i], sd = at(z, a, kind).slope * d;
            Z[place + i] = z;
            KP[place + i] = d;
            S[i] += sd * sd;
        }
}

/* Z += t KP, where t is not 0; then KP = beta KP - KG, curvature = ||s'(Z) KP||^2. */
void KERNEL(redirect)(
    const Shape *shape, REAL *Z, const REAL *KG, const REAL *t, const REAL *beta, REAL *KP, REAL *work,
    double *curvature)
{
    REAL *ts = work, *betas = ts + rows_of_stripe(shape->M) * shape->M, *sums = betas + (betas - ts);
    spread(t, shape->M, ts);
    spread(beta, shape->M, betas);
#define CALL(kind) redirect(shape->M, shape->a, first, last, Z, KG, ts, betas, KP, S, kind)
    CHUNKS(shape, sums, curvature, CALL)
#undef CALL
}

INLINE attempt(
    long M, REAL a, long first, long last, const REAL *Z, const REAL *T, const REAL *KP, const REAL *t, REAL *E, REAL *S,
    const int kind)
{
    EACH_STRIPE(M, first, last)
        if (E)
            EACH(i, length) {
                const REAL z = t[i] != 0 ? Z[place + i] + t[i] * KP[place + i] : Z[place + i];
                const Point s = at(z, a, kind);
                const REAL e = s.value - T[place + i];
                E[place + i] = e * s.slope;
                S[i] += e * e;
            }
        else
            EACH(i, length) {
                const REAL z = t[i] != 0 ? Z[place + i] + t[i] * KP[place + i] : Z[place + i];
                const REAL e = at(z, a, kind).value - T[place + i];
                S[i] += e * e;
            }
}

/* f = ||s(Z_new) - T||^2 for Z_new = Z + t KP where t is not 0; E = (s(Z_new) - T) s'(Z_new) unless it is NULL. */
void KERNEL(attempt)(
    const Shape *shape, const REAL *Z, const REAL *T, const REAL *KP, const REAL *t, REAL *E, REAL *work, double *f)
{
    REAL *ts = work, *sums = ts + rows_of_stripe(shape->M) * shape->M;
    spread(t, shape->M, ts);
#define CALL(kind) attempt(shape->M, shape->a, first, last, Z, T, KP, ts, E, S, kind)
    CHUNKS(shape, sums, f, CALL)
#undef CALL
}

/* value = s(Z), slope = s'(Z), N M numbers each: for tests. */
void KERNEL(points)(const Shape *shape, const REAL *Z, REAL *value, REAL *slope)
{
#define CALL(kind) \
    EACH(i, shape->N * shape->M) { \
        const Point s = at(Z[i], shape->a, kind); \
        value[i] = s.value; \
        slope[i] = s.slope; \
    }
    BY_KIND(shape->kind, CALL)
#undef CALL
}

/* The number of nonzeros among n numbers. */
long KERNEL(nonzeros)(const REAL *x, long n, long threads)
{
    long found = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(+ : found)
#endif
    for (long first = 0; first < n; first += 4096) { /* few enough to count in an int: a vector holds more ints than longs */
        const long end = least(first + 4096, n);
        int some = 0;
        SUMS(i, end - first, some) some += x[first + i] != 0;
        found += some;
    }
    return found;
}
