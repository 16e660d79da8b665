/* Products of two pixels at a fixed distance, summed over an image: the sums that entries of the patches' Gram matrix share
 * (sibp.prox.operators.patches). A vector holds channels of one pixel, or, if there are few channels, one channel of the same
 * pixel in LANES images. */
#include "sums.h"
#include "transpose.h"

#define BAND (1L << 17) /* bytes of pixels that are processed together, so that they stay in the L2 cache */
#define SUMMED 512      /* pixels, at most about, in one running sum: more would increase the rounding error */
#define NARROW (2 * SIDE) /* rows of a tile of one vector, so that enough sums fill the pipeline */
#define THIN 4 /* pixels in a short row; longer rows stay the inner loop, as their pixels are adjacent in memory */
#if BYTES == 64
#define SQUARE 4 /* rows and columns of a tile where vectors hold images: the sums fit into the registers */
#else
#define SQUARE 3
#endif

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
 * `height` and `width` exist. */
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

/* The same for all `c` channels of each pixel. Not inlined: beside add_square_of_images, the compiler would keep the grid in
 * memory. */
static __attribute__((noinline)) void add_square(const REAL *a, const REAL *b, const Grid *grid, REAL *to, long c)
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

/* to += the sums over a grid of a b^T, where vectors hold images: for `side` channels of each pixel, of which only the first
 * `height` and `width` exist; the last one stands in for the others. Channels are `plane` numbers apart. */
static inline __attribute__((always_inline)) void add_images(
    const REAL *a, const REAL *b, const Grid *grid, REAL *to, long row, long plane, long height, long width,
    const int side)
{
    const REAL *left[SQUARE], *right[SQUARE];
    for (int s = 0; s < side; s++) left[s] = a + least(s, height - 1) * plane, right[s] = b + least(s, width - 1) * plane;
    Vector sums[SQUARE * SQUARE] = {0};
    for (long k = 0; k < grid->number[0]; k++)
        for (long y = 0; y < grid->number[1]; y++) {
            long place = k * grid->step[0] + y * grid->step[1];
            for (long x = 0; x < grid->number[2]; x++, place += grid->step[2]) {
                Vector here[SQUARE];
                for (int s = 0; s < side; s++) here[s] = load(left[s] + place);
                for (int j = 0; j < side; j++) {
                    const Vector there = load(right[j] + place);
                    for (int s = 0; s < side; s++) sums[s * side + j] += here[s] * there;
                }
            }
        }
    REAL found[SQUARE * SQUARE];
    sums_of(sums, side * side, found);
    for (long s = 0; s < least(side, height); s++)
        for (long j = 0; j < least(side, width); j++) to[s * row + j] += found[s * side + j];
}

/* The same for all channels. */
static __attribute__((noinline)) void add_square_of_images(
    const REAL *a, const REAL *b, const Grid *grid, REAL *to, long c, long plane)
{
    const long side = least(c, SQUARE);
    for (long i = 0; i < c; i += side)
        for (long j = 0; j < c; j += side) {
#define CALL(side) \
    add_images(a + i * plane, b + j * plane, grid, to + i * c + j, c, plane, c - i, c - j, side)
            switch (side) {
#if SQUARE > 3
            case 4: CALL(4); break;
#endif
            case 3: CALL(3); break;
            case 2: CALL(2); break;
            default: CALL(1);
            }
#undef CALL
        }
}

/* Groups of up to LANES images, which lie side by side. */
static long groups_of(long B) { return (B + LANES - 1) / LANES; }

/* The size of a copy of B images, with room for reads past the channels of the last pixel. */
long KERNEL(pixels_size)(long B, long C, long P, long images)
{
    return images ? groups_of(B) * LANES * C * P : B * C * P + WIDE * LANES + NARROW;
}

/* to, (B, P, C), from x, (B, C, P); what follows is set to 0. If vectors hold images, to is (B / LANES, C, P, LANES), and the
 * images that are missing in the last vector are 0. */
void KERNEL(pixels)(const REAL *x, REAL *to, long B, long C, long P, long images, long threads)
{
    if (images) {
        SHARED(threads)
        for (long k = 0; k < groups_of(B); k++) {
            const long number = least(LANES, B - k * LANES);
            REAL *here = to + k * C * P * LANES;
            if (number < LANES) memset(here, 0, C * P * LANES * sizeof(REAL));
            transpose(x + k * LANES * C * P, C * P, number, C * P, here, LANES);
        }
        return;
    }
    SHARED(threads)
    for (long k = 0; k < B; k++) transpose(x + k * C * P, P, C, P, to + k * C * P, C);
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

/* How a copy by `pixels` lies in memory: the number of images (or groups of them), and distances in numbers from one pixel,
 * image (or group) and channel to the next; plane is 0 where vectors hold channels. */
typedef struct {
    long count, pixel, image, plane;
} Layout;

/* Puts the longest axis last if the last one is very short: each row costs as much as a few pixels. */
static void sort(Grid *grid)
{
    if (grid->number[2] > THIN) return;
    for (int end = 2; end > 0; end--)
        for (int axis = 0; axis < end; axis++)
            if (grid->number[axis] > grid->number[axis + 1]) {
                const long number = grid->number[axis], step = grid->step[axis];
                grid->number[axis] = grid->number[axis + 1], grid->step[axis] = grid->step[axis + 1];
                grid->number[axis + 1] = number, grid->step[axis + 1] = step;
            }
}

/* to += the sums of a region over the rows from `begin` to `end` of `count` images. Not inlined: in a thread's loop the
 * compiler would keep the grid in memory. */
static __attribute__((noinline)) void add_band(
    const REAL *x, REAL *to, const Region *region, const Layout *layout, long count, long begin, long end, long width, long c)
{
    const Stretch rows = region->rows, columns = region->columns;
    const long before = begin > rows.first ? (begin - rows.first + rows.step - 1) / rows.step : 0;
    const long first = rows.first + before * rows.step, past = least(end, rows.first + rows.number * rows.step);
    if (first >= past) return;
    const long pixel = layout->pixel;
    Grid grid = {
        {count, (past - first + rows.step - 1) / rows.step, columns.number},
        {layout->image, rows.step * width * pixel, columns.step * pixel}};
    sort(&grid);
    const REAL *a = x + (first * width + columns.first) * pixel, *b = a + (rows.lag * width + columns.lag) * pixel;
    if (layout->plane) add_square_of_images(a, b, &grid, to, c, layout->plane);
    else add_square(a, b, &grid, to, c);
}

/* out, (regions, c, c): for each region, the sum over its pixels of x^T x[lag], for `c` channels of B images (height, width,
 * C), beginning with `channel`; x is a copy by `pixels`. A large image is processed in bands of rows, small images several at
 * a time. A thread keeps its regions for all images: it waits for no other, and each region is summed in the same order for
 * any number of threads. */
void KERNEL(lagged)(
    const REAL *x, REAL *out, const Region *regions, long number, long B, long height, long width, long C, long channel,
    long c, long images, long threads)
{
    const long P = height * width;
    const Layout layout = images ? (Layout){groups_of(B), LANES, C * P * LANES, P * LANES} : (Layout){B, C, C * P, 0};
    const long bytes = (images ? c * LANES : C) * (long)sizeof(REAL); /* of a pixel */
    const long fitting = least(BAND / bytes, SUMMED) / width; /* rows */
    const long band = least(fitting > 1 ? fitting : 1, height);
    const long together = band < height ? 1 : fitting / height > 1 ? fitting / height : 1;
    x += images ? channel * P * LANES : channel;
    long owner[number];
    assign(regions, number, threads, owner);
    memset(out, 0, number * c * c * sizeof(REAL));
    SHARED(threads)
    for (long thread = 0; thread < threads; thread++)
        for (long k = 0; k < layout.count; k += together)
            for (long begin = 0; begin < height; begin += band)
                for (long n = 0; n < number; n++)
                    if (owner[n] == thread)
                        add_band(
                            x + k * layout.image, out + n * c * c, regions + n, &layout, least(together, layout.count - k),
                            begin, least(begin + band, height), width, c);
}
