// Classifies the test image and compares the scores with LiteRT's: exit code 0 if they agree.

#include <cmath>
#include <cstdio>
#include <cstdint>

#include "model.h"
#include "preprocess.h"
#include "test_image.h"  // the image, and which output is the result

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace tflite {
namespace micro {}  // versions of 2026 have their classes there, earlier ones one level up
}  // namespace tflite
using namespace tflite;
using namespace tflite::micro;

alignas(16) static uint8_t arena[MODEL_ARENA_SIZE];

int main() {
  InitializeTarget();
  static MicroMutableOpResolver<MODEL_OPERATORS> resolver;
  if (!MODEL_ADD_OPERATORS(resolver)) {
    std::printf("TFLM lacks some of the model's operators\n");
    return 1;
  }
  static MicroInterpreter interpreter(GetModel(model), resolver, arena, MODEL_ARENA_SIZE);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::printf("an arena of %d bytes is too small, or TFLM refuses the model\n", MODEL_ARENA_SIZE);
    return 1;
  }
  auto* input = static_cast<MODEL_INPUT_TYPE*>(interpreter.input(0)->data.data);
  preprocess(test_image, TEST_IMAGE_WIDTH, TEST_IMAGE_HEIGHT, input);
  if (interpreter.Invoke() != kTfLiteOk) {
    std::printf("Invoke failed\n");
    return 1;
  }
  const auto* output = static_cast<const RESULT_TYPE*>(interpreter.output(RESULT)->data.data);
  int best = 0, wrong = 0;
  for (int i = 0; i < RESULT_SIZE; i++) {
    if (output[i] > output[best]) best = i;
    if (std::fabs(static_cast<double>(output[i]) - expected_output[i]) > TEST_TOLERANCE) wrong++;
  }
  for (int i = 0; i < RESULT_SIZE; i++) {
    std::printf("%c %9.4f  %s\n", i == best ? '*' : ' ', (output[i] - RESULT_ZERO_POINT) * RESULT_SCALE,
                model_class_names[RESULT_SIZE == 1 ? 1 : i]);
  }
  std::printf(wrong == 0 ? "as expected\n" : "%d of %d scores are not as expected\n", wrong, RESULT_SIZE);
  return wrong == 0 ? 0 : 1;
}
