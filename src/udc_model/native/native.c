/* CPU kernels for operations of ConvNeXt and of the augmentation that are slow in torch. Plain C with OpenMP, without
 * headers of Python or torch.
 *
 * native_body.h contains the arithmetic and is compiled once per instruction set. The widest set of the processor is
 * chosen at run time, so the library can be copied to another machine. Arrays are dense with the channels last. They
 * are float32, or bfloat16 if bf16 != 0. Sums over rows or images are computed in a fixed number of parts, which are
 * added in order, so the result has the same bits for any number of threads. Each function returns 0 on success and 1
 * if it cannot allocate memory.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
};

#if defined(__x86_64__)
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
