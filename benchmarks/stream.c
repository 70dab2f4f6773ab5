// Copy, scale, add and triad as in STREAM (McCalpin 1995), with float32 and any size: median GB/s.
// gcc -O3 -march=native -fopenmp stream.c && ./a.out MEBIBYTES
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { WARMUP = 3, SAMPLES = 50 };

static int by_size(const void *x, const void *y) {
    return (*(double *)x > *(double *)y) - (*(double *)x < *(double *)y);
}

#define MEASURE(kernel, arrays, value)                                              \
    for (int sample = -WARMUP; sample < SAMPLES; sample++) {                        \
        double begin = omp_get_wtime();                                             \
        _Pragma("omp parallel for") for (size_t i = 0; i < n; i++) a[i] = value;    \
        if (sample >= 0) seconds[sample] = omp_get_wtime() - begin;                 \
    }                                                                               \
    for (size_t i = 0; i < n; i++)                                                  \
        if (a[i] != value) return 1;                                                \
    qsort(seconds, SAMPLES, sizeof *seconds, by_size);                              \
    printf("%s %g\n", kernel, arrays * 4e-9 * n / seconds[SAMPLES / 2]);

int main(int count, char **arguments) {
    size_t n = (count > 1 ? atoi(arguments[1]) : 64) * (1ul << 18);
    float *a = malloc(4 * n), *b = malloc(4 * n), *c = malloc(4 * n), s = 3;
    double seconds[SAMPLES];
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) a[i] = 0, b[i] = i % 1021, c[i] = i % 1019;
    MEASURE("copy", 2, b[i])
    MEASURE("scale", 2, s * b[i])
    MEASURE("add", 3, b[i] + c[i])
    MEASURE("triad", 3, b[i] + s * c[i])
    return 0;
}
