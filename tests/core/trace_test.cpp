#include "core/trace.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "kernels/elementwise.h"
#include "support/temp_dir.h"
#include "support/tensors.h"

namespace gradus {
namespace {

using Track = Trace::Track;

/// A point of time, in milliseconds from a fixed one.
Trace::Clock::time_point at(int ms) {
  return Trace::Clock::time_point{} + std::chrono::milliseconds(ms);
}

TEST(Trace, TimeThatEventsShareCountsOnce) {
  Trace trace;
  trace.record(Track::communication, "all_reduce", "dp", at(0), at(10));
  trace.record(Track::communication, "all_reduce", "dp", at(4), at(12));
  trace.record(Track::communication, "all_gather", "dp", at(20), at(21));
  EXPECT_DOUBLE_EQ(trace.seconds(Track::communication), 0.013);
  EXPECT_DOUBLE_EQ(trace.seconds(Track::compute), 0.0);
}

TEST(Trace, CommunicationIsHiddenWhileThisRankComputes) {
  Trace trace;
  trace.record(Track::communication, "all_reduce", "dp", at(0), at(10));
  trace.record(Track::communication, "all_reduce", "dp", at(30), at(40));
  trace.record(Track::compute, "matmul", "qkv", at(2), at(5));
  trace.record(Track::compute, "gelu", "up", at(5), at(8));
  trace.record(Track::wait, "all_reduce", "dp", at(8), at(10));
  trace.record(Track::compute, "matmul", "down", at(35), at(60));
  EXPECT_DOUBLE_EQ(trace.hidden_seconds(), 0.006 + 0.005);
}

TEST(Trace, OperationsAreRecordedFromOneToTheNext) {
  Executor x(Device::cpu, 1);
  test::TensorPool pool;
  const Tensor tensor = pool.zeros({1000}, DType::fp32);
  Trace trace;
  const auto begin = Trace::Clock::now();
  {
    const TraceObserver observer(x, trace);
    fill(x, tensor, 1.0);
    scale(x, tensor, 2.0);
    x.waited("all_reduce", tensor);
    x.waited("exchange", {});
  }
  fill(x, tensor, 0.0);  // no longer observed
  const double passed = std::chrono::duration<double>(Trace::Clock::now() - begin).count();
  EXPECT_GT(trace.seconds(Track::compute), 0.0);
  EXPECT_GT(trace.seconds(Track::wait), 0.0);
  EXPECT_LE(trace.seconds(Track::compute) + trace.seconds(Track::wait), passed);

  const test::TempDir folder;
  trace.write(folder.path() / "trace.json", 3);
  std::ifstream file(folder.path() / "trace.json");
  std::string names;
  const auto document = nlohmann::json::parse(file);
  for (const auto& event : document.at("traceEvents")) {
    EXPECT_EQ(event.at("pid"), 3);
    if (event.at("ph") != "X") continue;
    EXPECT_GE(event.at("dur"), 0.0);
    names += event.at("name").get<std::string>() + " ";
  }
  EXPECT_EQ(names, "fill scale all_reduce exchange ");
}

TEST(Trace, WhatDoesNotFitIsCounted) {
  Trace trace(100);
  const auto record = [&] {
    for (int i = 0; i < 75; ++i) trace.record(Track::compute, "fill", nullptr, at(i), at(i + 1));
  };
  std::thread other(record);
  record();
  other.join();
  const test::TempDir folder;
  trace.write(folder.path() / "trace.json", 0);
  std::ifstream file(folder.path() / "trace.json");
  EXPECT_EQ(nlohmann::json::parse(file).at("eventsLeftOut"), 50);
}

}  // namespace
}  // namespace gradus
