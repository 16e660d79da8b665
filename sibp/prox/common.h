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

#define EACH(i, n) _Pragma("GCC ivdep") for (long i = 0; i < (n); i++)
