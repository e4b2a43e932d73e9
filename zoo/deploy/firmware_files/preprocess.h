#ifndef PREPROCESS_H_
#define PREPROCESS_H_

#include <stdint.h>

#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Turns an image into what the model reads: crops its centre to the input's aspect ratio, resizes and normalises it.
   If training used the centre of a larger image (RESIZED_HEIGHT x RESIZED_WIDTH in normalization.h), so does this.

   pixels: red, green and blue of each pixel, row by row. input: MODEL_INPUT_HEIGHT x MODEL_INPUT_WIDTH x
   MODEL_INPUT_CHANNELS numbers. The values equal those of training bit by bit. An image of RESIZED_HEIGHT x
   RESIZED_WIDTH only needs a table look-up; get such images from the camera if you can, as resizing takes double
   precision. */
void preprocess(const uint8_t *pixels, int width, int height, MODEL_INPUT_TYPE *input);

#ifdef __cplusplus
}
#endif

#endif /* PREPROCESS_H_ */
