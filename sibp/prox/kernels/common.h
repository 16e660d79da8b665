/* Shared by the C files: vectors of the registers' width, products, and loops. setup.py compiles each file once for every
 * dtype and vector width: REAL is float or double, and SUFFIX, such as float_avx2, ends the names of the functions that
 * Python calls. */
#pragma once
#include <string.h>

#define JOINED(name, suffix) name##_##suffix
#define EXPANDED(name, suffix) JOINED(name, suffix)
#define KERNEL(name) EXPANDED(name, SUFFIX)

/* A tile of a product has SIDE rows of WIDE vectors: with the operands, they fill the vector registers. */
#define SIDE 4
#if defined(__AVX512F__)
#define BYTES 64
#define WIDE 4
#elif defined(__AVX__)
#define BYTES 32
#define WIDE 3
#elif defined(__SSE2__)
#define BYTES 16
#define WIDE 2 /* without FMA, products take registers, too */
#else
#define BYTES 16
#define WIDE 4
#endif
#define LANES ((long)(BYTES / sizeof(REAL)))
typedef REAL Vector __attribute__((vector_size(BYTES)));

static inline Vector load(const REAL *from)
{
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(REAL *to, Vector v) { memcpy(to, &v, sizeof v); }
static inline long least(long p, long q) { return p < q ? p : q; }
static inline long filled_up(long n) { return (n + LANES - 1) / LANES * LANES; }

/* A tile of a product: out = lam X + in M, with in (SIDE x inner), M (inner x `vectors` vectors); rows of M, X and out are
 * `row` apart. X is not read for lam = 0. */
static inline __attribute__((always_inline)) void tile_of(
    const REAL *in, long in_row, const REAL *M, long row, long inner, const REAL *X, REAL lam, REAL *out,
    const int vectors)
{
    Vector sums[SIDE][WIDE] = {0};
    for (long k = 0; k < inner; k++) {
        Vector b[WIDE];
        for (int v = 0; v < vectors; v++) b[v] = load(M + k * row + v * LANES);
        for (int q = 0; q < SIDE; q++)
            for (int v = 0; v < vectors; v++) sums[q][v] += in[q * in_row + k] * b[v];
    }
    for (int q = 0; q < SIDE; q++)
        for (int v = 0; v < vectors; v++) {
            const long place = q * row + v * LANES;
            store(out + place, lam != 0 ? sums[q][v] + lam * load(X + place) : sums[q][v]);
        }
}

/* Runs `call` with the number of vectors as a compile-time constant. */
#if WIDE > 3
#define CASE_4(call) case 4: call(4); break;
#else
#define CASE_4(call)
#endif
#if WIDE > 2
#define CASE_3(call) case 3: call(3); break;
#else
#define CASE_3(call)
#endif
#define BY_WIDTH(vectors, call) \
    switch (vectors) { \
    CASE_4(call) \
    CASE_3(call) \
    case 2: call(2); break; \
    default: call(1); \
    }

static inline void tile(
    const REAL *in, long in_row, const REAL *M, long row, long inner, const REAL *X, REAL lam, REAL *out, long vectors)
{
#define CALL(vectors) tile_of(in, in_row, M, row, inner, X, lam, out, vectors)
    BY_WIDTH(vectors, CALL)
#undef CALL
}

#define TEXT(...) #__VA_ARGS__
/* A loop of independent iterations. */
#define EACH(i, n) _Pragma("omp simd") for (long i = 0; i < (n); i++)

/* The same, except that iterations add to the given variables, in any order. */
#define SUMS(i, n, ...) _Pragma(TEXT(omp simd reduction(+ : __VA_ARGS__))) for (long i = 0; i < (n); i++)

/* Distributes the following loop over `threads` threads; without OpenMP it runs in one. */
#ifdef _OPENMP
#define SHARED(threads) _Pragma(TEXT(omp parallel for num_threads(threads) if ((threads) > 1) schedule(static)))
#else
#define SHARED(threads)
#endif
