// MPI_Allreduce of float32 sums over all processes: for each size in KiB, the median busbw in GB/s,
// which is S / t times 2 (n - 1) / n as in nccl-tests.
// mpicc -O3 all_reduce.c && mpirun -n 2 ./a.out KIBIBYTES...
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { WARMUP = 3, SAMPLES = 10 };
static const double SAMPLE = 0.02;  // seconds

static float *sent, *sum;

static int by_size(const void *x, const void *y) {
    return (*(double *)x > *(double *)y) - (*(double *)x < *(double *)y);
}

static double sample(int calls, int size) {
    double begin = MPI_Wtime();
    for (int call = 0; call < calls; call++)
        MPI_Allreduce(sent, sum, size, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    return (MPI_Wtime() - begin) / calls;
}

int main(int count, char **arguments) {
    int n, rank;
    double seconds[SAMPLES];
    MPI_Init(&count, &arguments);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int k = 1; k < count; k++) {
        int size = atoi(arguments[k]) * 256;
        sent = malloc(4ul * size), sum = malloc(4ul * size);
        for (int i = 0; i < size; i++) sent[i] = (i + 3 * rank) % 7;
        sample(WARMUP, size);
        for (int i = 0; i < size; i++) {
            for (int other = 0; other < n; other++) sum[i] -= (i + 3 * other) % 7;
            if (sum[i] != 0) MPI_Abort(MPI_COMM_WORLD, 1);
        }
        int calls = ceil(SAMPLE / sample(1, size));
        MPI_Bcast(&calls, 1, MPI_INT, 0, MPI_COMM_WORLD);
        for (int j = 0; j < SAMPLES; j++) seconds[j] = sample(calls, size);
        qsort(seconds, SAMPLES, sizeof *seconds, by_size);
        double busbw = 4e-9 * size / seconds[SAMPLES / 2] * 2 * (n - 1) / n;
        if (rank == 0) printf("%s %g\n", arguments[k], busbw);
        free(sent), free(sum);
    }
    MPI_Finalize();
}
