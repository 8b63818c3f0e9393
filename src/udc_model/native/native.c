/* CPU kernels for operations of ConvNeXt and of the augmentation that are slow in torch, and for the resamples of an
 * evaluation. Plain C with OpenMP, without headers of Python, numpy or torch.
 *
 * native_body.h contains the arithmetic and is compiled once per instruction set. The widest set of the processor is
 * chosen at run time, so the library can be copied to another machine. Arrays are dense with the channels last. They
 * are float32, or bfloat16 if bf16 != 0. Sums over rows or images are computed in a fixed number of parts, which are
 * added in order, so the result has the same bits for any number of threads. Each function returns 0 on success and 1
 * if it cannot allocate memory.
 */
#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define MAX_COLUMNS 9 /* columns of a convolution kernel that are summed together, in registers */
#define GROUPS 8      /* number of parts of a batch of images */
#define PARTS 64      /* number of parts of a batch of rows */

/* library.py rejects other versions. Code of earlier commits uses this library when it reproduces a run: do not change an
 * exported function, add another one. */
EXPORT int udc_kernels_version(void) { return 2; }

struct Kernels {
    int (*depthwise)(const void *, const void *, int, long, long, long, long, int, int, float *, float *);
    void (*gelu)(const void *, const float *, int, long, long, long, void *);
    void (*gelu_backward)(const void *, const float *, const void *, int, long, long, long, void *, float *);
    void (*residual)(const void *, const float *, const float *, const float *, long, const void *, int, int, long,
                     long, long, float *);
    void (*residual_backward)(const void *, const float *, const float *, const float *, long, const float *, int, long,
                              long, long, void *, float *, float *);
    int (*crop)(const uint8_t *, const float *, long, long, const float *, const float *, float *, int);
    /* NULL without wide registers */
    void (*scale_columns)(const uint8_t *, long, long, const int32_t *, const int32_t *, long, long, uint8_t *);
    void (*scale_rows)(const uint8_t *, long, const int32_t *, const int32_t *, long, long, uint8_t *);
};

#if defined(__x86_64__)
typedef int32_t quad __attribute__((vector_size(16)));

/* Rounds 16 sums of pixels times weights to pixels: divides them by 2^22 and clips them to 0 to 255. */
static inline __attribute__((always_inline)) void round_to_bytes(quad *sums, uint8_t *out) {
    for (int i = 0; i < 4; i++) sums[i] = (sums[i] + (1 << 21)) >> 22;
    const __m128i low = _mm_packs_epi32((__m128i)sums[0], (__m128i)sums[1]);
    const __m128i high = _mm_packs_epi32((__m128i)sums[2], (__m128i)sums[3]);
    _mm_storeu_si128((__m128i *)out, _mm_packus_epi16(low, high));
}

#define NAME(function) function##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define LANES 16
#include "native_body.h"

#define NAME(function) function##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#include "native_body.h"
#endif

#define NAME(function) function##_plain
#define TARGET
#define LANES 4
#include "native_body.h"

static const struct Kernels *kernels(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
    return &kernels_plain;
}

/* total[c] = the sum over the parts of partial[part][c]. */
static void add_parts(const float *partial, long parts, long channels, float *total) {
    for (long c = 0; c < channels; c++) {
        total[c] = 0;
        for (long part = 0; part < parts; part++) total[c] += partial[part * channels + c];
    }
}

/* Weight gradient (channels, size, size) and bias gradient (channels), float32, of a depthwise convolution with an odd
 * kernel size, stride 1 and padding size / 2; x and grad: (n, height, width, channels). */
EXPORT int udc_depthwise_gradient(const void *x, const void *grad, int bf16, long n, long height, long width,
                                  long channels, int size, int threads, float *grad_weight, float *grad_bias) {
    return kernels()->depthwise(x, grad, bf16, n, height, width, channels, size, threads, grad_weight, grad_bias);
}

/* out = gelu(x + bias); x, out: (rows, channels). */
EXPORT int udc_bias_gelu(const void *x, const float *bias, int bf16, long rows, long channels, int threads, void *out) {
    const struct Kernels *k = kernels();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < PARTS; part++)
        k->gelu(x, bias, bf16, rows * part / PARTS, rows * (part + 1) / PARTS, channels, out);
    return 0;
}

/* grad_x = grad * gelu'(x + bias); grad_bias = the sum of grad_x over the rows. */
EXPORT int udc_bias_gelu_backward(const void *x, const float *bias, const void *grad, int bf16, long rows,
                                  long channels, int threads, void *grad_x, float *grad_bias) {
    const struct Kernels *k = kernels();
    float *partial = calloc(PARTS * channels, sizeof(float));
    if (partial == NULL) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < PARTS; part++)
        k->gelu_backward(x, bias, grad, bf16, rows * part / PARTS, rows * (part + 1) / PARTS, channels, grad_x,
                         partial + part * channels);
    add_parts(partial, PARTS, channels, grad_bias);
    free(partial);
    return 0;
}

/* out = residual + factor * scale * (x + bias); x, residual: (rows, channels), residual is bfloat16 if
 * residual_bf16 != 0; factor: one value per rows_per_factor rows, or NULL for 1; out: float32. */
EXPORT int udc_scaled_residual(const void *x, const float *bias, const float *scale, const float *factor,
                               long rows_per_factor, const void *residual, int bf16, int residual_bf16, long rows,
                               long channels, int threads, float *out) {
    const struct Kernels *k = kernels();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < PARTS; part++)
        k->residual(x, bias, scale, factor, rows_per_factor, residual, bf16, residual_bf16, rows * part / PARTS,
                    rows * (part + 1) / PARTS, channels, out);
    return 0;
}

/* grad_x = grad * factor * scale; grad_bias = the sum of grad_x over the rows; grad_scale = the sum of
 * grad * factor * (x + bias) over the rows. */
EXPORT int udc_scaled_residual_backward(const void *x, const float *bias, const float *scale, const float *factor,
                                        long rows_per_factor, const float *grad, int bf16, long rows, long channels,
                                        int threads, void *grad_x, float *grad_bias, float *grad_scale) {
    const struct Kernels *k = kernels();
    float *partial = calloc(2 * PARTS * channels, sizeof(float));
    if (partial == NULL) return 1;
    float *partial_scale = partial + PARTS * channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < PARTS; part++)
        k->residual_backward(x, bias, scale, factor, rows_per_factor, grad, bf16, rows * part / PARTS,
                             rows * (part + 1) / PARTS, channels, grad_x, partial + part * channels,
                             partial_scale + part * channels);
    add_parts(partial, PARTS, channels, grad_bias);
    add_parts(partial_scale, PARTS, channels, grad_scale);
    free(partial);
    return 0;
}

/* out = scale * crop + shift, where crop is a part of x, resized as by torch's grid_sample (bilinear) with
 * align_corners=False and padding_mode="border". x: (n, side, side, channels) uint8; boxes: (n, 4): left, top, width,
 * height as shares of the side, where a negative width means that the crop from left to left - width is mirrored;
 * scale, shift: (channels); out: (n, size, size, channels) float32. Channels are 3, or 1 in udc_crop_resize_grey. */
static int crop_resize(const uint8_t *x, const float *boxes, long n, long side, long size, const float *scale,
                       const float *shift, int channels, int threads, float *out) {
    const struct Kernels *k = kernels();
    const long in_values = side * side * channels, out_values = size * size * channels;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
    for (long i = 0; i < n; i++)
        failed |= k->crop(x + i * in_values, boxes + 4 * i, side, size, scale, shift, out + i * out_values, channels);
    return failed;
}

EXPORT int udc_crop_resize(const uint8_t *x, const float *boxes, long n, long side, long size, const float *scale,
                           const float *shift, int threads, float *out) {
    return crop_resize(x, boxes, n, side, size, scale, shift, 3, threads, out);
}

EXPORT int udc_crop_resize_grey(const uint8_t *x, const float *boxes, long n, long side, long size, const float *scale,
                                const float *shift, int threads, float *out) {
    return crop_resize(x, boxes, n, side, size, scale, shift, 1, threads, out);
}

/* Whether the next two functions are available. */
EXPORT int udc_scales_images(void) { return kernels()->scale_columns != NULL; }

/* The two passes of Pillow's Image.resize, with its bits: each value is the sum of `taps` neighbours times weights, which
 * are multiples of 2^-22, rounded to 8 bits. The sum for result i begins at first[i], and all `taps` neighbours exist;
 * weights: (size, taps).
 * Columns: x: (height, width, 4) RGB and a byte that is not used; taps is a multiple of 4, and weights: (size, taps, 4),
 * each one repeated; out: (height, size, 3).
 * Rows: x: (rows, width) and out: (size, width) of any values, width at least 16. */
EXPORT int udc_scale_columns(const uint8_t *x, long height, long width, const int32_t *first, const int32_t *weights,
                             long size, long taps, uint8_t *out) {
    kernels()->scale_columns(x, height, width, first, weights, size, taps, out);
    return 0;
}

EXPORT int udc_scale_rows(const uint8_t *x, long width, const int32_t *first, const int32_t *weights, long size,
                          long taps, uint8_t *out) {
    kernels()->scale_rows(x, width, first, weights, size, taps, out);
    return 0;
}

/* The functions below take the sums of resamples of an evaluation: sums: (rows, resamples), row 0 is the weight of all
 * images, rows first[j] to first[j + 1] - 1 are those of class j. The bins of class j, highest probability first, are
 * bins[j] to bins[j + 1] - 1; negative and positive are the rows with the weight of a bin's images of other classes and
 * of class j: -1 if it has none, -2 if it has the weight that is in no other row of the class. The additions are those of
 * numpy (evaluation/score_sums.py), in the same order. */

/* rest: (resamples), the weight of the images that are in no row from `row` to `end`; never 0 or less, by rounding. */
static void rest_of_class(const double *sums, long resamples, const double *row, const double *end, double *rest) {
    for (long b = 0; b < resamples; b++) rest[b] = 0;
    for (; row < end; row += resamples)
        for (long b = 0; b < resamples; b++) rest[b] += row[b];
    for (long b = 0; b < resamples; b++) {
        rest[b] = sums[b] - rest[b];
        if (rest[b] < 1e-9 * sums[b]) rest[b] = 1e-9 * sums[b];
    }
}

static const double *weights_of(long row, const double *sums, long resamples, const double *rest) {
    return row == -1 ? NULL : row == -2 ? rest : sums + row * resamples;
}

/* Area under the ROC curve and average precision of each class against the rest, (classes, resamples) each. */
EXPORT int udc_score_areas(const double *sums, long resamples, long classes, const long *first, const long *bins,
                           const long *negative, const long *positive, double *auc, double *average_precision) {
    double *rest = malloc(3 * resamples * sizeof(double));
    if (rest == NULL) return 1;
    double *below = rest + resamples, *above = below + resamples; /* false and true positives so far */
    for (long j = 0; j < classes; j++, auc += resamples, average_precision += resamples) {
        rest_of_class(sums, resamples, sums + first[j] * resamples, sums + first[j + 1] * resamples, rest);
        for (long b = 0; b < resamples; b++) below[b] = above[b] = auc[b] = average_precision[b] = 0;
        for (long bin = bins[j]; bin < bins[j + 1]; bin++) {
            const double *others = weights_of(negative[bin], sums, resamples, rest);
            const double *own = weights_of(positive[bin], sums, resamples, rest);
            if (own != NULL)
                for (long b = 0; b < resamples; b++) above[b] += own[b];
            if (others != NULL)
                for (long b = 0; b < resamples; b++) {
                    below[b] += others[b];
                    auc[b] += others[b] * (own != NULL ? above[b] - own[b] / 2 : above[b]);
                }
            if (own != NULL)
                for (long b = 0; b < resamples; b++) {
                    const double size = above[b] + below[b];
                    average_precision[b] += own[b] * (above[b] / (size < DBL_MIN ? DBL_MIN : size));
                }
        }
        for (long b = 0; b < resamples; b++) {
            auc[b] /= above[b] * below[b];
            average_precision[b] /= above[b];
        }
    }
    free(rest);
    return 0;
}

/* Adds, for each point of grid (ascending), the value at the point of the curve through (x[i], y[i]), x ascending, to
 * total: numpy.interp. */
static void add_interpolated(const double *x, const double *y, long length, const double *grid, long points,
                             double *total) {
    for (long g = 0, i = 0; g < points; g++) {
        while (i < length - 1 && x[i + 1] <= grid[g]) i++;
        if (i == length - 1 || x[i] >= grid[g])
            total[g] += y[i];
        else
            total[g] += (y[i + 1] - y[i]) / (x[i + 1] - x[i]) * (grid[g] - x[i]) + y[i];
    }
}

/* Adds the curves of all classes to tpr and precision, (resamples, points) each: the true positive rate at the false
 * positive rates of grid, and the highest precision at the recalls of grid or more. */
EXPORT int udc_score_curves(const double *sums, long resamples, long classes, const long *first, const long *bins,
                            const long *negative, const long *positive, const double *grid, long points, double *tpr,
                            double *precision) {
    long most = 0;
    for (long j = 0; j < classes; j++)
        if (bins[j + 1] - bins[j] > most) most = bins[j + 1] - bins[j];
    double *rest = malloc((resamples + 3 * (most + 1)) * sizeof(double));
    if (rest == NULL) return 1;
    double *recall = rest + resamples, *fallout = recall + most + 1, *best = fallout + most + 1; /* recall 0 first */
    recall[0] = fallout[0] = 0;
    for (long j = 0; j < classes; j++) {
        const long count = bins[j + 1] - bins[j];
        rest_of_class(sums, resamples, sums + first[j] * resamples, sums + first[j + 1] * resamples, rest);
        for (long b = 0; b < resamples; b++) {
            for (long i = 0; i < count; i++) {
                const double *others = weights_of(negative[bins[j] + i], sums, resamples, rest);
                const double *own = weights_of(positive[bins[j] + i], sums, resamples, rest);
                recall[i + 1] = recall[i] + (own != NULL ? own[b] : 0);
                fallout[i + 1] = fallout[i] + (others != NULL ? others[b] : 0);
                const double size = recall[i + 1] + fallout[i + 1];
                best[i] = size > 0 ? recall[i + 1] / size : 0;
            }
            const double all_own = recall[count], all_others = fallout[count];
            for (long i = count; i > 0; i--) {
                recall[i] /= all_own;
                fallout[i] /= all_others;
                if (i < count && best[i] > best[i - 1]) best[i - 1] = best[i];
            }
            add_interpolated(fallout, recall, count + 1, grid, points, tpr + b * points);
            for (long g = 0, i = 0; g < points; g++) {
                while (i < count - 1 && recall[i + 1] < grid[g]) i++;
                precision[b * points + g] += best[i];
            }
        }
    }
    free(rest);
    return 0;
}
