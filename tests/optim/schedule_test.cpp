#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace gradus {
namespace {

constexpr ScheduleKind kKinds[] = {ScheduleKind::constant, ScheduleKind::linear,
                                   ScheduleKind::cosine, ScheduleKind::wsd};

OptimConfig config(ScheduleKind kind, int64_t warmup) {
  return {.lr = 0.8, .min_lr = 0.08, .warmup_steps = warmup, .schedule = kind};
}

TEST(Schedule, WarmupIsLinearAndEndsAtThePeak) {
  for (const ScheduleKind kind : kKinds) {
    const OptimConfig optim = config(kind, 4);
    EXPECT_DOUBLE_EQ(learning_rate(optim, 0, 20), 0.2) << to_string(kind);
    EXPECT_DOUBLE_EQ(learning_rate(optim, 1, 20), 0.4) << to_string(kind);
    EXPECT_DOUBLE_EQ(learning_rate(optim, 2, 20), 0.6) << to_string(kind);
    EXPECT_EQ(learning_rate(optim, 3, 20), 0.8) << to_string(kind);
  }
}

TEST(Schedule, ConstantStaysAtThePeak) {
  const OptimConfig optim = config(ScheduleKind::constant, 2);
  for (int64_t step = 1; step < 30; ++step) EXPECT_EQ(learning_rate(optim, step, 20), 0.8);
}

TEST(Schedule, LinearFallsByEqualSteps) {
  const OptimConfig optim = config(ScheduleKind::linear, 2);
  // Eight steps after warmup; each goes down by an eighth of the range 0.72.
  for (int64_t step = 2; step < 10; ++step) {
    EXPECT_NEAR(learning_rate(optim, step, 10), 0.8 - 0.09 * static_cast<double>(step - 1), 1e-15);
  }
}

TEST(Schedule, CosineByItsDefinition) {
  const OptimConfig optim = config(ScheduleKind::cosine, 2);
  for (int64_t step = 2; step < 10; ++step) {
    const double angle = std::numbers::pi * static_cast<double>(step - 1) / 8.0;
    EXPECT_DOUBLE_EQ(learning_rate(optim, step, 10), 0.08 + 0.36 * (1.0 + std::cos(angle)));
  }
  // Halfway the rate is the mean of peak and end.
  EXPECT_DOUBLE_EQ(learning_rate(optim, 5, 10), 0.44);
}

TEST(Schedule, WsdIsStableThenLinear) {
  OptimConfig optim = config(ScheduleKind::wsd, 2);
  optim.decay_steps = 4;
  for (int64_t step = 2; step < 6; ++step) EXPECT_EQ(learning_rate(optim, step, 10), 0.8) << step;
  EXPECT_DOUBLE_EQ(learning_rate(optim, 6, 10), 0.62);
  EXPECT_DOUBLE_EQ(learning_rate(optim, 7, 10), 0.44);
  EXPECT_DOUBLE_EQ(learning_rate(optim, 8, 10), 0.26);
  EXPECT_EQ(learning_rate(optim, 9, 10), 0.08);
}

TEST(Schedule, WsdDecaysOverAFifthRoundedUpUnlessTold) {
  const OptimConfig optim = config(ScheduleKind::wsd, 0);
  EXPECT_EQ(resolved_decay_steps(optim, 100), 20);
  EXPECT_EQ(resolved_decay_steps(optim, 101), 21);
  EXPECT_EQ(resolved_decay_steps(optim, 1), 1);
  EXPECT_EQ(learning_rate(optim, 79, 100), 0.8);
  EXPECT_LT(learning_rate(optim, 80, 100), 0.8);
}

TEST(Schedule, WsdThatDecaysFromTheEndOfWarmupIsLinear) {
  OptimConfig wsd = config(ScheduleKind::wsd, 3);
  wsd.decay_steps = 7;
  const OptimConfig linear = config(ScheduleKind::linear, 3);
  for (int64_t step = 0; step < 10; ++step) {
    EXPECT_EQ(learning_rate(wsd, step, 10), learning_rate(linear, step, 10)) << step;
  }
}

/// Bitwise: a run that is said to end at min_lr does.
TEST(Schedule, LastStepHasExactlyTheFinalRate) {
  for (const ScheduleKind kind : {ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::wsd}) {
    for (const int64_t steps : {1, 2, 3, 7, 100, 2000, 1000003}) {
      for (const int64_t warmup : {int64_t{0}, int64_t{1}, steps / 2, steps - 1}) {
        if (warmup >= steps) continue;
        OptimConfig optim = config(kind, warmup);
        optim.lr = 3.7e-4;
        optim.min_lr = 1.3e-5;
        EXPECT_EQ(learning_rate(optim, steps - 1, steps), 1.3e-5)
            << to_string(kind) << ", " << warmup << " of " << steps;
        optim.min_lr = 0.0;
        EXPECT_EQ(learning_rate(optim, steps - 1, steps), 0.0) << to_string(kind);
      }
    }
  }
}

TEST(Schedule, NeverLeavesTheRangeAndNeverRisesAfterWarmup) {
  for (const ScheduleKind kind : kKinds) {
    for (const int64_t warmup : {0, 1, 10, 49}) {
      const OptimConfig optim = config(kind, warmup);
      for (int64_t step = 0; step < 50; ++step) {
        const double now = learning_rate(optim, step, 50);
        const double next = learning_rate(optim, step + 1, 50);
        EXPECT_GT(now, 0.0);
        EXPECT_LE(now, optim.lr);
        if (step + 1 < warmup) {
          EXPECT_GT(next, now) << to_string(kind) << " " << step;
        } else {
          EXPECT_LE(next, now) << to_string(kind) << " " << step;
          EXPECT_GE(now, optim.min_lr);
        }
      }
    }
  }
}

TEST(Schedule, WithoutWarmupTheFirstStepIsAlreadyOnTheCourse) {
  EXPECT_EQ(learning_rate(config(ScheduleKind::constant, 0), 0, 10), 0.8);
  EXPECT_DOUBLE_EQ(learning_rate(config(ScheduleKind::linear, 0), 0, 10), 0.728);
  EXPECT_EQ(learning_rate(config(ScheduleKind::wsd, 0), 0, 10), 0.8);
  EXPECT_LT(learning_rate(config(ScheduleKind::cosine, 0), 0, 10), 0.8);
}

TEST(Schedule, WarmupAsLongAsTheRunEndsAtThePeak) {
  for (const ScheduleKind kind : kKinds) {
    const OptimConfig optim = config(kind, 10);
    for (int64_t step = 0; step < 10; ++step) {
      EXPECT_DOUBLE_EQ(learning_rate(optim, step, 10), 0.08 * static_cast<double>(step + 1));
    }
    EXPECT_EQ(learning_rate(optim, 9, 10), 0.8) << to_string(kind);
  }
}

TEST(Schedule, StaysAtTheEndBeyondTheRun) {
  for (const ScheduleKind kind : {ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::wsd}) {
    EXPECT_EQ(learning_rate(config(kind, 2), 1000, 10), 0.08) << to_string(kind);
  }
}

}  // namespace
}  // namespace gradus
