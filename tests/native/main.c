/* Run the checks in both precisions, linked with the library; print what failed. */
#include <stdio.h>

int checks_float32(void);
int checks_float64(void);
int nnbackend_level(void);
int nnbackend_lanes_float32(void);
int nnbackend_lanes_float64(void);

int main(void) {
    const int failed = checks_float32() + checks_float64();
    printf("level %d, %d and %d lanes: %s\n", nnbackend_level(), nnbackend_lanes_float32(),
           nnbackend_lanes_float64(), failed ? "FAILED" : "passed");
    return failed != 0;
}
