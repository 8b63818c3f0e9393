/* Included by native.c once per instruction set; native.c defines NAME, TARGET and LANES (channels per register). */
#define INLINE static inline __attribute__((always_inline)) TARGET
#define vec NAME(vec)
#define half NAME(half)
#define wide NAME(wide)
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));
typedef uint32_t wide __attribute__((vector_size(4 * LANES)));

/* Loads elements i to i + LANES - 1 of a float32 or bfloat16 array as float32; elements from `count` on are zero. */
INLINE vec NAME(load)(const void *array, long i, int bf16, long count) {
    vec value = {0};
    if (bf16) {
        half bits = {0};
        if (count >= LANES)
            memcpy(&bits, (const uint16_t *)array + i, sizeof bits);
        else
            memcpy(&bits, (const uint16_t *)array + i, count * sizeof(uint16_t));
        wide widened = __builtin_convertvector(bits, wide) << 16; /* bfloat16 is the upper half of a float32 */
        memcpy(&value, &widened, sizeof value);
    } else if (count >= LANES) {
        memcpy(&value, (const float *)array + i, sizeof value);
    } else {
        memcpy(&value, (const float *)array + i, count * sizeof(float));
    }
    return value;
}

/* The inverse of load; bfloat16 is rounded to nearest, ties to even. */
INLINE void NAME(store)(vec value, void *array, long i, int bf16, long count) {
    if (count > LANES) count = LANES;
    if (bf16) {
        wide bits;
        memcpy(&bits, &value, sizeof bits);
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const wide nan = (wide)(value != value); /* rounding could turn a NaN into a number */
        bits = (nan & 0x7fc0) | (~nan & bits);
        const half rounded = __builtin_convertvector(bits, half);
        if (count == LANES)
            memcpy((uint16_t *)array + i, &rounded, sizeof rounded);
        else
            memcpy((uint16_t *)array + i, &rounded, count * sizeof(uint16_t));
    } else if (count == LANES) {
        memcpy((float *)array + i, &value, sizeof value);
    } else {
        memcpy((float *)array + i, &value, count * sizeof(float));
    }
}

INLINE void NAME(add)(vec value, float *array, long i, long count) {
    NAME(store)(NAME(load)(array, i, 0, count) + value, array, i, 0, count);
}

/* exp(x) for x <= 0 to 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf). */
INLINE vec NAME(exp)(vec x) {
    const vec lowest = (vec){0} - 87.0f;
    const wide kept = (wide)(x > lowest);
    x = (vec)(((wide)x & kept) | ((wide)lowest & ~kept));
    const vec shifted = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
    const vec n = shifted - 12582912.0f;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const wide power = ((wide)shifted - (wide)((vec){0} + 12582912.0f)) << 23;
    return (vec)((wide)p + power);
}

/* erf(x) to 4 units in the last place: a rational function on [-4, 4] (Eigen's float erf). */
INLINE vec NAME(erf)(vec x) {
    const vec limit = (vec){0} + 4.0f;
    const wide high = (wide)(x > limit), low = (wide)(x < -limit);
    x = (vec)(((wide)x & ~(high | low)) | ((wide)limit & high) | ((wide)-limit & low));
    const vec s = x * x;
    vec p = -2.72614225801306e-10f * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    vec q = -1.45660718464996e-05f * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

/* Standard normal distribution function at v to 1e-7 (Abramowitz and Stegun 1964, 7.1.26); *density: its derivative. */
INLINE vec NAME(normal)(vec v, vec *density) {
    const vec z = (vec)((wide)v & 0x7fffffff) * 0.707106781f;
    const vec t = 1.0f / (1.0f + 0.3275911f * z);
    const vec e = NAME(exp)(-z * z);
    vec tail = 1.061405429f * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = (tail * t + 0.254829592f) * t * e * 0.5f;
    *density = 0.398942280f * e;
    const wide negative = (wide)(v < 0.0f);
    return (vec)(((wide)tail & negative) | ((wide)(1.0f - tail) & ~negative));
}

/* Row kernels: each processes the rows from `from` to `until` - 1 for the function of the same name in native.c. A step
 * processes min(count, LANES) channels from channel c on; with a constant count it has no branches. */
#define ROWS(STEP)                                                                                                     \
    for (long row = from; row < until; row++) {                                                                        \
        long c = 0;                                                                                                    \
        for (; c + LANES <= channels; c += LANES) STEP(LANES);                                                         \
        if (c < channels) STEP(channels - c);                                                                          \
    }

INLINE void NAME(gelu_step)(const void *x, const float *bias, int bf16, long i, long c, long count, void *out) {
    const vec v = NAME(load)(x, i, bf16, count) + NAME(load)(bias, c, 0, count);
    NAME(store)(0.5f * v * (1.0f + NAME(erf)(v * 0.707106781f)), out, i, bf16, count);
}

TARGET static void NAME(gelu)(const void *x, const float *bias, int bf16, long from, long until, long channels,
                              void *out) {
#define STEP(count) NAME(gelu_step)(x, bias, bf16, row * channels + c, c, count, out)
    ROWS(STEP)
#undef STEP
}

INLINE void NAME(gelu_backward_step)(const void *x, const float *bias, const void *grad, int bf16, long i, long c,
                                     long count, void *grad_x, float *grad_bias) {
    vec density;
    const vec v = NAME(load)(x, i, bf16, count) + NAME(load)(bias, c, 0, count);
    const vec probability = NAME(normal)(v, &density);
    const vec g = NAME(load)(grad, i, bf16, count) * (probability + v * density);
    NAME(store)(g, grad_x, i, bf16, count);
    NAME(add)(g, grad_bias, c, count);
}

TARGET static void NAME(gelu_backward)(const void *x, const float *bias, const void *grad, int bf16, long from,
                                       long until, long channels, void *grad_x, float *grad_bias) {
#define STEP(count) NAME(gelu_backward_step)(x, bias, grad, bf16, row * channels + c, c, count, grad_x, grad_bias)
    ROWS(STEP)
#undef STEP
}

INLINE void NAME(residual_step)(const void *x, const float *bias, const float *scale, float factor, const void *residual,
                                int bf16, int residual_bf16, long i, long c, long count, float *out) {
    const vec v = NAME(load)(x, i, bf16, count) + NAME(load)(bias, c, 0, count);
    const vec kept = NAME(load)(residual, i, residual_bf16, count);
    NAME(store)(kept + factor * NAME(load)(scale, c, 0, count) * v, out, i, 0, count);
}

TARGET static void NAME(residual)(const void *x, const float *bias, const float *scale, const float *factor,
                                  long rows_per_factor, const void *residual, int bf16, int residual_bf16, long from,
                                  long until, long channels, float *out) {
#define STEP(count)                                                                                                    \
    NAME(residual_step)(x, bias, scale, factor == NULL ? 1.0f : factor[row / rows_per_factor], residual, bf16,         \
                        residual_bf16, row * channels + c, c, count, out)
    ROWS(STEP)
#undef STEP
}

INLINE void NAME(residual_backward_step)(const void *x, const float *bias, const float *scale, float factor,
                                         const float *grad, int bf16, long i, long c, long count, void *grad_x,
                                         float *grad_bias, float *grad_scale) {
    const vec v = NAME(load)(x, i, bf16, count) + NAME(load)(bias, c, 0, count);
    const vec g = factor * NAME(load)(grad, i, 0, count), scaled = g * NAME(load)(scale, c, 0, count);
    NAME(store)(scaled, grad_x, i, bf16, count);
    NAME(add)(scaled, grad_bias, c, count);
    NAME(add)(g * v, grad_scale, c, count);
}

TARGET static void NAME(residual_backward)(const void *x, const float *bias, const float *scale, const float *factor,
                                           long rows_per_factor, const float *grad, int bf16, long from, long until,
                                           long channels, void *grad_x, float *grad_bias, float *grad_scale) {
#define STEP(count)                                                                                                    \
    NAME(residual_backward_step)(x, bias, scale, factor == NULL ? 1.0f : factor[row / rows_per_factor], grad, bf16,    \
                                 row * channels + c, c, count, grad_x, grad_bias, grad_scale)
    ROWS(STEP)
#undef STEP
}
#undef ROWS

/* sums[k] += sum over ox of grad[ox] * x[ox + k] for k < columns, a constant, so that the sums are in registers. */
INLINE void NAME(columns)(const int columns, const vec *x, const vec *grad, long width, vec *sums) {
    vec part[MAX_COLUMNS];
#pragma GCC unroll 9
    for (int k = 0; k < columns; k++) part[k] = (vec){0};
    for (long ox = 0; ox < width; ox++) {
        const vec g = grad[ox];
#pragma GCC unroll 9
        for (int k = 0; k < columns; k++) part[k] += g * x[ox + k];
    }
#pragma GCC unroll 9
    for (int k = 0; k < columns; k++) sums[k] += part[k];
}

INLINE void NAME(row)(int size, const vec *x, const vec *grad, long width, vec *sums) {
    switch (size) {
    case 3: NAME(columns)(3, x, grad, width, sums); break;
    case 5: NAME(columns)(5, x, grad, width, sums); break;
    case 7: NAME(columns)(7, x, grad, width, sums); break;
    case 9: NAME(columns)(9, x, grad, width, sums); break;
    default:
        for (int k = 0; k < size; k++) NAME(columns)(1, x + k, grad, width, sums + k);
    }
}

/* Processes LANES channels of one image. sums: size * size sums of products, followed by the sum of grad;
 * ring: the last `size` rows of x as float32, padded with zeros on both sides; line: one row of grad. */
INLINE void NAME(image)(const void *x, const void *grad, int bf16, long height, long width, long channels, long count,
                        int size, vec *ring, vec *line, vec *sums) {
    const int pad = size / 2;
    const long pitch = width + 2 * pad;
    for (long y = 0; y < height + pad; y++) {
        if (y < height)
            for (long i = 0; i < width; i++)
                ring[(y % size) * pitch + pad + i] = NAME(load)(x, (y * width + i) * channels, bf16, count);
        const long oy = y - pad; /* the ring now contains all rows of x that this row of grad needs */
        if (oy < 0) continue;
        for (long i = 0; i < width; i++) {
            line[i] = NAME(load)(grad, (oy * width + i) * channels, bf16, count);
            sums[size * size] += line[i];
        }
        for (int ky = 0; ky < size; ky++) {
            const long iy = oy + ky - pad;
            if (iy >= 0 && iy < height) NAME(row)(size, ring + (iy % size) * pitch, line, width, sums + ky * size);
        }
    }
}

TARGET static int NAME(depthwise)(const void *x, const void *grad, int bf16, long n, long height, long width,
                                  long channels, int size, int threads, float *grad_weight, float *grad_bias) {
    const long groups = n < GROUPS ? n : GROUPS, blocks = (channels + LANES - 1) / LANES;
    const long results = (long)size * size + 1, lines = size * (width + size - 1) + width;
    const long step = height * width * channels, bytes = bf16 ? 2 : 4;
    vec *partial = aligned_alloc(64, ((groups * blocks * results * sizeof(vec)) + 63) / 64 * 64);
    int failed = partial == NULL;
    if (failed) return 1;
    memset(partial, 0, groups * blocks * results * sizeof(vec));

#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        vec *scratch = aligned_alloc(64, (((results + lines) * sizeof(vec)) + 63) / 64 * 64);
        failed = scratch == NULL;
        if (!failed) memset(scratch, 0, (results + lines) * sizeof(vec));
        /* all threads must reach the loop, including those without memory */
#pragma omp for collapse(2) schedule(static)
        for (long group = 0; group < groups; group++)
            for (long block = 0; block < blocks; block++) {
                if (failed) continue;
                vec *total = partial + (group * blocks + block) * results;
                for (long i = group * n / groups; i < (group + 1) * n / groups; i++) {
                    const long start = (i * step + block * LANES) * bytes;
                    memset(scratch, 0, results * sizeof(vec));
                    NAME(image)((const char *)x + start, (const char *)grad + start, bf16, height, width, channels,
                                channels - block * LANES, size, scratch + results + width, scratch + results, scratch);
                    for (long k = 0; k < results; k++) total[k] += scratch[k];
                }
            }
        free(scratch);
    }
    for (long c = 0; c < channels; c++)
        for (long k = 0; k < results; k++) {
            float sum = 0;
            for (long group = 0; group < groups; group++)
                sum += partial[(group * blocks + c / LANES) * results + k][c % LANES];
            if (k < results - 1)
                grad_weight[c * (results - 1) + k] = sum;
            else
                grad_bias[c] = sum;
        }
    free(partial);
    return failed;
}

/* Maps output pixel i of `size` to an input row or column of `side` pixels: *first is the input pixel before it, the
 * result is the weight of the next one. start and length are shares of the side; a negative length means mirrored. */
INLINE float NAME(position)(long i, long size, long side, float start, float length, long *first) {
    const float reach = length < 0 ? -length : length, turn = (2 * i + 1) / (float)size - 1;
    float at = side * (start + 0.5f * (reach + length * turn)) - 0.5f;
    if (at < 0) at = 0;
    if (at > side - 1) at = side - 1;
    *first = (long)at;
    if (*first > side - 2) *first = side > 1 ? side - 2 : 0;
    return at - *first;
}

/* Crops one image for udc_crop_resize: interpolates between two rows and then between columns. */
INLINE int NAME(crop_channels)(const uint8_t *x, const float *box, long side, long size, const float *scale,
                               const float *shift, float *out, const int channels) {
    float *line = malloc((channels * side + 4 * size) * sizeof(float) + size * sizeof(long)); /* the interpolated row */
    if (line == NULL) return 1;
    float *weights = line + channels * side;
    long *columns = (long *)(((uintptr_t)(weights + size) + 7) & ~(uintptr_t)7);
    const long next = side > 1 ? channels : 0, width = channels * side;
    for (long i = 0; i < size; i++) {
        weights[i] = NAME(position)(i, size, side, box[0], box[2], &columns[i]);
        columns[i] *= channels;
    }
    for (long y = 0; y < size; y++) {
        long row;
        const float lower = NAME(position)(y, size, side, box[1], box[3], &row);
        const uint8_t *above = x + row * width, *below = above + (side > 1 ? width : 0);
        for (long i = 0; i < width; i++) line[i] = above[i] + lower * (below[i] - above[i]);
        for (long i = 0; i < size; i++, out += channels) {
            const float *left = line + columns[i], *right = left + next;
            for (int c = 0; c < channels; c++)
                out[c] = (left[c] + weights[i] * (right[c] - left[c])) * scale[c] + shift[c];
        }
    }
    free(line);
    return 0;
}

TARGET static int NAME(crop)(const uint8_t *x, const float *box, long side, long size, const float *scale,
                             const float *shift, float *out, int channels) {
    /* The constants let the compiler unroll the loop over channels. */
    return channels == 3 ? NAME(crop_channels)(x, box, side, size, scale, shift, out, 3)
                         : NAME(crop_channels)(x, box, side, size, scale, shift, out, 1);
}

#if LANES > 4 /* with narrower registers, Pillow is faster */
#define ints NAME(ints)
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* GCC 12 would convert bytes to integers in several steps. */
INLINE ints NAME(load_pixels)(const uint8_t *x) {
#if LANES == 16
    return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)x));
#else
    return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x));
#endif
}

/* Processes four rows together. A register has the four bytes of LANES / 4 neighbouring pixels, and `weights` repeats
 * each weight four times. Where fewer than four rows are left, the first of them takes the place of the others. */
TARGET static void NAME(scale_columns)(const uint8_t *x, long height, long width, const int32_t *first,
                                       const int32_t *weights, long size, long taps, uint8_t *out) {
    for (long y = 0; y < height; y += 4)
        for (long i = 0; i < size; i++) {
            const uint8_t *rows[4];
            ints sums[4] = {{0}};
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) rows[r] = x + 4 * ((y + r < height ? y + r : y) * width + first[i]);
            for (long k = 0; k < 4 * taps; k += LANES) {
                ints weight;
                memcpy(&weight, weights + 4 * taps * i + k, sizeof weight);
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) sums[r] += NAME(load_pixels)(rows[r] + k) * weight;
            }
            quad parts[4 * LANES / 4], totals[4];
            uint8_t pixels[16];
            memcpy(parts, sums, sizeof sums);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                totals[r] = parts[r * LANES / 4];
#pragma GCC unroll 4
                for (int part = 1; part < LANES / 4; part++) totals[r] += parts[r * LANES / 4 + part];
            }
            round_to_bytes(totals, pixels);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
                if (y + r < height) memcpy(out + 3 * ((y + r) * size + i), pixels + 4 * r, 3);
        }
}

/* Adds rows of `width` values, 16 columns together. */
TARGET static void NAME(scale_rows)(const uint8_t *x, long width, const int32_t *first, const int32_t *weights,
                                    long size, long taps, uint8_t *out) {
    for (long y = 0; y < size; y++, weights += taps, out += width)
        for (long i = 0; i < width; i += 16) {
            const long at = i + 16 <= width ? i : width - 16; /* the last columns overlap those before */
            const uint8_t *column = x + first[y] * width + at;
            ints sums[16 / LANES] = {{0}};
            for (long k = 0; k < taps; k++)
#pragma GCC unroll 4
                for (int part = 0; part < 16 / LANES; part++)
                    sums[part] += NAME(load_pixels)(column + k * width + part * LANES) * weights[k];
            quad totals[4];
            memcpy(totals, sums, sizeof totals);
            round_to_bytes(totals, out + at);
        }
}
#undef ints
#endif

static const struct Kernels NAME(kernels) = {NAME(depthwise), NAME(gelu),    NAME(gelu_backward), NAME(residual),
                                             NAME(residual_backward), NAME(crop),
#if LANES > 4
                                             NAME(scale_columns),     NAME(scale_rows),
#endif
};

#undef NAME
#undef TARGET
#undef LANES
#undef INLINE
#undef vec
#undef half
#undef wide
