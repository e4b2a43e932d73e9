#ifndef PREPROCESS_H_
#define PREPROCESS_H_

#include <stdint.h>

#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Turns an image into what the model reads: crops it in the middle to the shape of the input, scales it, normalises it.
   Where training looked at the middle of a larger image (RESIZED_HEIGHT x RESIZED_WIDTH of normalization.h), so it does.

   pixels: red, green and blue of each pixel, row by row. input: MODEL_INPUT_HEIGHT x MODEL_INPUT_WIDTH x
   MODEL_INPUT_CHANNELS numbers. The values are those of training, to the last bit. An image of that size is only
   looked up in a table; take such images from the camera where you can, for scaling takes double precision. */
void preprocess(const uint8_t *pixels, int width, int height, MODEL_INPUT_TYPE *input);

#ifdef __cplusplus
}
#endif

#endif /* PREPROCESS_H_ */
