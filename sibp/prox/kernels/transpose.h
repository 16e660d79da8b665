/* Transposes, by small squares that fit the registers. */
#pragma once
#include "common.h"

#define IS_float 1
#define IS_double 0
#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (__typeof__(int __attribute__((vector_size(16))))){__VA_ARGS__})
#endif
#define CORNER (16 / (long)sizeof(REAL)) /* rows and columns of a square */

/* to = the transpose of a square of CORNER x CORNER numbers. */
static inline void transpose_corner(const REAL *restrict from, long from_row, REAL *restrict to, long to_row)
{
    typedef REAL Short __attribute__((vector_size(16)));
    Short in[CORNER], out[CORNER];
    for (long p = 0; p < CORNER; p++) memcpy(&in[p], from + p * from_row, sizeof in[p]);
#if EXPANDED(IS, REAL)
    const Short a = SHUFFLED(in[0], in[1], 0, 4, 1, 5), b = SHUFFLED(in[2], in[3], 0, 4, 1, 5);
    const Short c = SHUFFLED(in[0], in[1], 2, 6, 3, 7), d = SHUFFLED(in[2], in[3], 2, 6, 3, 7);
    out[0] = SHUFFLED(a, b, 0, 1, 4, 5), out[1] = SHUFFLED(a, b, 2, 3, 6, 7);
    out[2] = SHUFFLED(c, d, 0, 1, 4, 5), out[3] = SHUFFLED(c, d, 2, 3, 6, 7);
#else
    out[0] = (Short){in[0][0], in[1][0]}, out[1] = (Short){in[0][1], in[1][1]};
#endif
    for (long p = 0; p < CORNER; p++) memcpy(to + p * to_row, &out[p], sizeof out[p]);
}

/* to (columns x to_row) = the transpose of the first `columns` of from (rows x from_row); the rest of to's rows is kept. */
static inline __attribute__((always_inline)) void transpose(
    const REAL *restrict from, long from_row, long rows, long columns, REAL *restrict to, long to_row)
{
    const long whole_rows = rows / CORNER * CORNER, whole = columns / CORNER * CORNER;
    for (long i = 0; i < whole_rows; i += CORNER)
        for (long q = 0; q < whole; q += CORNER)
            transpose_corner(from + i * from_row + q, from_row, to + q * to_row + i, to_row);
    for (long i = 0; i < rows; i++)
        for (long q = i < whole_rows ? whole : 0; q < columns; q++) to[q * to_row + i] = from[i * from_row + q];
}
