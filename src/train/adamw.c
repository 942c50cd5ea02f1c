/* train/adamw.c - the optimizer and its learning rate. */
#include "breakwater/train.h"
#include <math.h>
#include <string.h>

/* The order of operations, and where a value is rounded to float, follow torch.optim.AdamW: decay, both moments, then
 * p -= step_size * m / (sqrt(v) / sqrt(correction) + eps). */
void bw_adamw_update(const bw_adamw *adamw, double lr, int64_t step, float *p, float *m, float *v, const float *gradient, int64_t n)
{
    float decay = (float)(1 - lr * adamw->weight_decay);
    float beta1 = (float)adamw->beta1, beta2 = (float)adamw->beta2;
    float fresh1 = (float)(1 - adamw->beta1), fresh2 = (float)(1 - adamw->beta2);
    float step_size = (float)(lr / (1 - pow(adamw->beta1, (double)step)));
    float root = (float)sqrt(1 - pow(adamw->beta2, (double)step));
    float epsilon = (float)adamw->epsilon;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i];
        m[i] = beta1 * m[i] + fresh1 * g;
        v[i] = beta2 * v[i] + fresh2 * g * g;
        p[i] = p[i] * decay - step_size * (m[i] / (sqrtf(v[i]) / root + epsilon));
    }
}

double bw_learning_rate(const char *schedule, double lr, double warmup, int64_t step, int64_t steps)
{
    int64_t rising = (int64_t)ceil(warmup * (double)steps);
    if (step < rising)
        return lr * (double)step / (double)rising;
    if (strcmp(schedule, "constant") == 0)
        return lr;
    double falling = (double)(steps - rising > 1 ? steps - rising : 1), progress = (double)(step - rising) / falling;
    if (strcmp(schedule, "linear") == 0)
        return lr * fmax(0, 1 - progress);
    return lr * fmax(0, 0.5 * (1 + cos(M_PI * progress)));
}
