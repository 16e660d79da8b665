/* Products of pixels with pixels at a distance, summed over an image: what its patches share in a Gram matrix; see
 * sibp.prox.operators.patches. The channels of a pixel lie side by side. */
#include "turn.h"

#define BAND (1L << 17) /* bytes of pixels that are processed together, so that they stay in the L2 cache */
#define SUMMED 512      /* about as many pixels are summed one after the other: more would increase the rounding error */
#define NARROW (2 * SIDE) /* rows of a tile of one vector, so that enough sums fill the pipeline */

/* Rows or columns: `number` of them, `step` apart, each multiplied with the one `lag` further on. */
typedef struct {
    long first, number, step, lag;
} Stretch;

typedef struct {
    Stretch rows, columns;
} Region;

/* Places of pixels in memory: `number` along each axis, `step` numbers apart. */
typedef struct {
    long number[3], step[3];
} Grid;

/* to += the sums over a grid of a[p] b[j], for `side` channels p and some vectors of channels j, of which only the first
 * `height` and `width` are there. */
static inline __attribute__((always_inline)) void add_products(
    const REAL *a, const REAL *b, const Grid *grid, REAL *to, long row, long height, long width, const int side,
    const int vectors)
{
    Vector sums[NARROW][WIDE] = {0};
    for (long k = 0; k < grid->number[0]; k++)
        for (long y = 0; y < grid->number[1]; y++) {
            const REAL *p = a + k * grid->step[0] + y * grid->step[1], *q = b + (p - a);
            for (long x = 0; x < grid->number[2]; x++, p += grid->step[2], q += grid->step[2]) {
                Vector right[WIDE];
                for (int v = 0; v < vectors; v++) right[v] = load(q + v * LANES);
                for (int s = 0; s < side; s++)
                    for (int v = 0; v < vectors; v++) sums[s][v] += p[s] * right[v];
            }
        }
    for (long s = 0; s < least(side, height); s++) {
        REAL found[WIDE * LANES] = {0};
        for (int v = 0; v < vectors; v++) store(found + v * LANES, sums[s][v]);
        for (long j = 0; j < least(vectors * LANES, width); j++) to[s * row + j] += found[j];
    }
}

/* The same for all channels: `c` of each pixel, a square of sums. */
static void add_square(const REAL *a, const REAL *b, const Grid *grid, REAL *to, long c)
{
    for (long j = 0; j < c; j += WIDE * LANES) {
        const long vectors = least(WIDE, (c - j + LANES - 1) / LANES), side = vectors > 1 ? SIDE : NARROW;
        for (long i = 0; i < c; i += side) {
#define CALL(vectors) \
    add_products(a + i, b + j, grid, to + i * c + j, c, c - i, c - j, (vectors) > 1 ? SIDE : NARROW, vectors)
            BY_WIDTH(vectors, CALL)
#undef CALL
        }
    }
}

/* Numbers of a copy of B images: reading past the channels of the last pixel stays inside. */
long KERNEL(pixels_size)(long B, long C, long P) { return B * C * P + WIDE * LANES + NARROW; }

/* to, (B, P, C), from x, (B, C, P); what follows is set to 0. */
void KERNEL(pixels)(const REAL *x, REAL *to, long B, long C, long P, long threads)
{
    SHARED(threads)
    for (long k = 0; k < B; k++) turn(x + k * C * P, P, C, P, to + k * C * P, C);
    memset(to + B * C * P, 0, (WIDE * LANES + NARROW) * sizeof(REAL));
}

/* For each region its thread: the one with the fewest products so far. */
static void assign(const Region *regions, long number, long threads, long *owner)
{
    long load[threads];
    for (long thread = 0; thread < threads; thread++) load[thread] = 0;
    for (long n = 0; n < number; n++) {
        long idlest = 0;
        for (long thread = 1; thread < threads; thread++)
            if (load[thread] < load[idlest]) idlest = thread;
        owner[n] = idlest;
        load[idlest] += regions[n].rows.number * regions[n].columns.number;
    }
}

/* to += the sums of a region over the rows from `begin` to `end` of `count` images. Not inlined: in a thread's loop the
 * compiler would keep the grid in memory. */
static __attribute__((noinline)) void add_band(
    const REAL *x, REAL *to, const Region *region, long count, long begin, long end, long height, long width, long C,
    long c)
{
    const Stretch rows = region->rows, columns = region->columns;
    const long before = begin > rows.first ? (begin - rows.first + rows.step - 1) / rows.step : 0;
    const long first = rows.first + before * rows.step, past = least(end, rows.first + rows.number * rows.step);
    if (first >= past) return;
    const Grid grid = {
        {count, (past - first + rows.step - 1) / rows.step, columns.number},
        {height * width * C, rows.step * width * C, columns.step * C}};
    const REAL *a = x + (first * width + columns.first) * C;
    add_square(a, a + (rows.lag * width + columns.lag) * C, &grid, to, c);
}

/* out, (regions, c, c): for each region, the sum over its pixels of x^T x[lag], for `c` channels from x on of B images
 * (height, width, C). An image is taken by bands of rows, or several small images at a time. A thread keeps its regions
 * for all images: it waits for no other, and each region is summed in the same order for any number of threads. */
void KERNEL(lagged)(
    const REAL *x, REAL *out, const Region *regions, long number, long B, long height, long width, long C, long c,
    long threads)
{
    const long fitting = least(BAND / (long)(C * sizeof(REAL)), SUMMED) / width; /* rows */
    const long band = least(fitting > 1 ? fitting : 1, height);
    const long images = band < height ? 1 : fitting / height > 1 ? fitting / height : 1;
    long owner[number];
    assign(regions, number, threads, owner);
    memset(out, 0, number * c * c * sizeof(REAL));
    SHARED(threads)
    for (long thread = 0; thread < threads; thread++)
        for (long k = 0; k < B; k += images)
            for (long begin = 0; begin < height; begin += band)
                for (long n = 0; n < number; n++)
                    if (owner[n] == thread)
                        add_band(
                            x + k * height * width * C, out + n * c * c, regions + n, least(images, B - k), begin,
                            least(begin + band, height), height, width, C, c);
}
