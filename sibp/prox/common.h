/* What the C files here share: vectors as wide as the processor's registers, and activations of two linear pieces,
 * s(z) = z for z > 0, a z otherwise. REAL is float or double. */
#include <string.h>

#ifdef __AVX512F__
#define BYTES 64
#else
#define BYTES 32
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
static inline REAL value(REAL z, REAL a) { return z > 0 ? z : a * z; }
static inline REAL slope(REAL z, REAL a) { return z > 0 ? (REAL)1 : a; }

/* Rows of a tile; with WIDE vectors in each, its sums fill half of the vector registers. */
#define SIDE 4
#define WIDE 4

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

static inline void tile(
    const REAL *in, long in_row, const REAL *M, long row, long inner, const REAL *X, REAL lam, REAL *out, long vectors)
{
    switch (vectors) { /* known to the compiler in each case */
    case 4: tile_of(in, in_row, M, row, inner, X, lam, out, 4); break;
    case 3: tile_of(in, in_row, M, row, inner, X, lam, out, 3); break;
    case 2: tile_of(in, in_row, M, row, inner, X, lam, out, 2); break;
    default: tile_of(in, in_row, M, row, inner, X, lam, out, 1);
    }
}

#define EACH(i, n) _Pragma("GCC ivdep") for (long i = 0; i < (n); i++)
