#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <utility>
#include <vector>

#include "core/executor.h"

namespace gradus {

/// What a rank computes and what it communicates, on one clock, so that it can be seen which hides
/// which. Events go into memory of a fixed size; those beyond it are counted and left out.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Track : uint8_t { compute, wait, communication };

  explicit Trace(size_t most_events = size_t{1} << 20);

  /// `detail` adds to the name: a tensor, a group. Both are copied, cut to what an event holds. Any
  /// thread.
  void record(Track track, const char* name, const char* detail, Clock::time_point begin,
              Clock::time_point end);

  /// Events that did not fit: what the following say is then too little.
  int64_t left_out() const;
  /// Time covered by a track's events; where events of one track lie over each other it counts
  /// once.
  double seconds(Track track) const;
  /// Seconds of communication during which this rank computed.
  double hidden_seconds() const;
  /// In the format of Chrome's trace viewer (chrome://tracing, ui.perfetto.dev), as process `rank`.
  /// Throws IoError.
  void write(const std::filesystem::path& file, int rank) const;

 private:
  struct Event {
    Track track;
    Clock::time_point begin;
    Clock::time_point end;
    std::array<char, 40> name;
    std::array<char, 40> detail;
  };
  using Spans = std::vector<std::pair<Clock::time_point, Clock::time_point>>;
  Spans spans(Track track) const;

  mutable std::mutex mutex_;
  std::vector<Event> events_;
  size_t most_events_;
  int64_t left_out_ = 0;
};

/// Records each operation of an executor from the end of the one before it. Waiting for a
/// collective is an operation too, on a track of its own.
class TraceObserver final : public OperationObserver {
 public:
  /// Observes x until it is destroyed.
  TraceObserver(Executor& x, Trace& trace);
  ~TraceObserver() override { x_.observe(nullptr); }
  TraceObserver(const TraceObserver&) = delete;
  TraceObserver& operator=(const TraceObserver&) = delete;

  /// What has passed since the last operation belongs to none.
  void restart() { last_ = Trace::Clock::now(); }

  void completed(const char* operation, const ConstTensor& written) override;
  void waited(const char* operation, const ConstTensor& written) override;

 private:
  void record(Trace::Track track, const char* operation, const ConstTensor& written);

  Executor& x_;
  Trace& trace_;
  Trace::Clock::time_point last_;
};

}  // namespace gradus
