// The rate of the instructions that integer products and adders consist of: registers only, nothing to wait for.

#include <ctime>

namespace {

double seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

// The best of many short runs: billions of `run`'s twelve instructions a second.
template <typename Run>
double rate(const Run& run) {
    constexpr long kTimes = 50000;
    double best = 0;
    for (int round = 0; round < 100; ++round) {
        const double start = seconds();
        for (long time = 0; time < kTimes; ++time) run();
        const double found = 12e-9 * kTimes / (seconds() - start);
        if (found > best) best = found;
    }
    return best;
}

}  // namespace

#if defined(__AVX2__)
#define ONE(op, to) op " %%ymm14, %%ymm15, %%ymm" #to "\n"
#define TWO(op, to, sum) ONE(op, to) "vpaddd %%ymm" #to ", %%ymm" #sum ", %%ymm" #sum "\n"
#define ALONE(op) \
    ONE(op, 0) ONE(op, 1) ONE(op, 2) ONE(op, 3) ONE(op, 4) ONE(op, 5) ONE(op, 6) ONE(op, 7) ONE(op, 8) ONE(op, 9) \
    ONE(op, 10) ONE(op, 11)
#define ADDED(op) \
    TWO(op, 8, 0) TWO(op, 9, 1) TWO(op, 10, 2) TWO(op, 11, 3) TWO(op, 12, 4) TWO(op, 13, 5) TWO(op, 8, 6) \
    TWO(op, 9, 7) TWO(op, 10, 0) TWO(op, 11, 1) TWO(op, 12, 2) TWO(op, 13, 3)
#define REGISTERS \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
    "xmm14", "xmm15"

// Billions a second: additions that wait for one another, so the clock in GHz; vpmaddwd alone and with the addition of its
// result; vpsadbw so.
extern "C" void rates(double* to) {
    long number = 0;
    to[0] = rate([&] {
        asm volatile(
            "inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0\n inc %0"
            : "+r"(number));
    });
    to[1] = rate([] { asm volatile(ALONE("vpmaddwd")::: REGISTERS); });
    to[2] = rate([] { asm volatile(ADDED("vpmaddwd")::: REGISTERS); });
    to[3] = rate([] { asm volatile(ALONE("vpsadbw")::: REGISTERS); });
    to[4] = rate([] { asm volatile(ADDED("vpsadbw")::: REGISTERS); });
}
#endif
