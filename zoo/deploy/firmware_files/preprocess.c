#include "preprocess.h"

#include <math.h>

#include "normalization.h"

/* Resizes as Pillow does, because training used Pillow: each axis with weights of 22 bits, rounding to a byte between
   the two. The centre of the resized image is read. */
enum {
    WEIGHT_BITS = 22,
    HALF = 1 << (WEIGHT_BITS - 1),
    LEFT = (RESIZED_WIDTH - MODEL_INPUT_WIDTH) / 2,
    TOP = (RESIZED_HEIGHT - MODEL_INPUT_HEIGHT) / 2
};

/* The pixels along one axis that contribute to a new pixel, and the filter that weights them. */
typedef struct {
    int first, count;
    double center, shrink, sum;
} Window;

static double filter(double distance) {
    const double x = fabs(distance);
#if FILTER_SUPPORT == 2 /* bicubic */
    return x < 1.0 ? (1.5 * x - 2.5) * x * x + 1.0 : x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
#else
    return x < 1.0 ? 1.0 - x : 0.0;
#endif
}

static double weigh(const Window *window, int place) {
    return filter((place + window->first - window->center + 0.5) * (1.0 / window->shrink));
}

static Window find_window(int place, int old_size, int new_size) {
    const double scale = (double)old_size / new_size;
    const double shrink = scale < 1.0 ? 1.0 : scale;
    const double center = (place + 0.5) * scale;
    const double support = FILTER_SUPPORT * shrink;
    Window window = {(int)(center - support + 0.5), (int)(center + support + 0.5), center, shrink, 0.0};
    if (window.first < 0) window.first = 0;
    if (window.count > old_size) window.count = old_size;
    window.count -= window.first;
    for (int i = 0; i < window.count; i++) window.sum += weigh(&window, i);
    return window;
}

static int32_t find_weight(const Window *window, int place) {
    const double weight = weigh(window, place) / window->sum * (1 << WEIGHT_BITS);
    return (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
}

static uint8_t to_byte(int32_t sum) {
    const int32_t value = sum >> WEIGHT_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static uint8_t read_pixel(const uint8_t *rgb, int channel) {
#if MODEL_INPUT_CHANNELS == 1
    (void)channel;
    return (uint8_t)((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16); /* ITU-R 601 */
#else
    return rgb[channel];
#endif
}

static void store(MODEL_INPUT_TYPE *input, int row, int column, int channel, uint8_t value) {
    int place = row * MODEL_INPUT_WIDTH + column;
#if MODEL_INPUT_TURNED
    place = MODEL_INPUT_HEIGHT * MODEL_INPUT_WIDTH - 1 - place;
#endif
    input[place * MODEL_INPUT_CHANNELS + channel] = normalized[channel][value];
}

static int limit(double wanted, int most) {
    const int rounded = (int)rint(wanted);
    return rounded < 1 ? 1 : rounded > most ? most : rounded;
}

void preprocess(const uint8_t *pixels, int width, int height, MODEL_INPUT_TYPE *input) {
    static int32_t sums[MODEL_INPUT_WIDTH * MODEL_INPUT_CHANNELS]; /* of one row of the input */
    int old_width = width, old_height = height;
    if (width != RESIZED_WIDTH || height != RESIZED_HEIGHT) {
        old_width = limit((double)height * RESIZED_WIDTH / RESIZED_HEIGHT, width);
        old_height = limit((double)width * RESIZED_HEIGHT / RESIZED_WIDTH, height);
    }
    pixels += 3 * (((height - old_height) / 2) * width + (width - old_width) / 2);
    if (old_width == RESIZED_WIDTH && old_height == RESIZED_HEIGHT) {
        for (int y = 0; y < MODEL_INPUT_HEIGHT; y++)
            for (int x = 0; x < MODEL_INPUT_WIDTH; x++)
                for (int c = 0; c < MODEL_INPUT_CHANNELS; c++)
                    store(input, y, x, c, read_pixel(pixels + 3 * ((TOP + y) * width + LEFT + x), c));
        return;
    }
    for (int y = 0; y < MODEL_INPUT_HEIGHT; y++) {
        const Window rows = find_window(TOP + y, old_height, RESIZED_HEIGHT);
        for (int i = 0; i < MODEL_INPUT_WIDTH * MODEL_INPUT_CHANNELS; i++) sums[i] = HALF;
        for (int row = 0; row < rows.count; row++) {
            const uint8_t *line = pixels + 3 * (rows.first + row) * width;
            const int32_t row_weight = find_weight(&rows, row);
            for (int x = 0; x < MODEL_INPUT_WIDTH; x++) {
                const Window columns = find_window(LEFT + x, old_width, RESIZED_WIDTH);
                int32_t across[MODEL_INPUT_CHANNELS];
                for (int c = 0; c < MODEL_INPUT_CHANNELS; c++) across[c] = HALF;
                for (int i = 0; i < columns.count; i++) {
                    const int32_t weight = find_weight(&columns, i);
                    for (int c = 0; c < MODEL_INPUT_CHANNELS; c++)
                        across[c] += weight * read_pixel(line + 3 * (columns.first + i), c);
                }
                for (int c = 0; c < MODEL_INPUT_CHANNELS; c++)
                    sums[x * MODEL_INPUT_CHANNELS + c] += row_weight * to_byte(across[c]);
            }
        }
        for (int x = 0; x < MODEL_INPUT_WIDTH; x++)
            for (int c = 0; c < MODEL_INPUT_CHANNELS; c++)
                store(input, y, x, c, to_byte(sums[x * MODEL_INPUT_CHANNELS + c]));
    }
}
