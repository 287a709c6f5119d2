#include "core/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "core/atomic_file.h"

namespace gradus {
namespace {

constexpr std::array<const char*, 3> kTrackNames = {"compute", "wait", "communication"};

template <size_t N>
void copy_text(std::array<char, N>& out, const char* text) {
  const size_t length = std::min(std::strlen(text), N - 1);
  std::memcpy(out.data(), text, length);
  out[length] = '\0';
}

double seconds_of(
    const std::vector<std::pair<Trace::Clock::time_point, Trace::Clock::time_point>>& spans) {
  double sum = 0.0;
  for (const auto& [begin, end] : spans) sum += std::chrono::duration<double>(end - begin).count();
  return sum;
}

}  // namespace

Trace::Trace(size_t most_events) : most_events_(most_events) { events_.reserve(most_events); }

void Trace::record(Track track, const char* name, const char* detail, Clock::time_point begin,
                   Clock::time_point end) {
  Event event{.track = track, .begin = begin, .end = end, .name = {}, .detail = {}};
  copy_text(event.name, name);
  copy_text(event.detail, detail == nullptr ? "" : detail);
  const std::lock_guard lock(mutex_);
  if (events_.size() == most_events_) {
    ++left_out_;
    return;
  }
  events_.push_back(event);
}

int64_t Trace::left_out() const {
  const std::lock_guard lock(mutex_);
  return left_out_;
}

/// Ordered, and joined where they overlap.
Trace::Spans Trace::spans(Track track) const {
  const std::lock_guard lock(mutex_);
  Spans all;
  for (const Event& event : events_) {
    if (event.track == track) all.emplace_back(event.begin, event.end);
  }
  std::ranges::sort(all);
  Spans joined;
  for (const auto& span : all) {
    if (!joined.empty() && span.first <= joined.back().second) {
      joined.back().second = std::max(joined.back().second, span.second);
    } else {
      joined.push_back(span);
    }
  }
  return joined;
}

double Trace::seconds(Track track) const { return seconds_of(spans(track)); }

double Trace::hidden_seconds() const {
  const Spans compute = spans(Track::compute);
  const Spans communication = spans(Track::communication);
  Spans both;
  for (size_t i = 0, k = 0; i < compute.size() && k < communication.size();) {
    const auto begin = std::max(compute[i].first, communication[k].first);
    const auto end = std::min(compute[i].second, communication[k].second);
    if (begin < end) both.emplace_back(begin, end);
    compute[i].second < communication[k].second ? ++i : ++k;
  }
  return seconds_of(both);
}

void Trace::write(const std::filesystem::path& file, int rank) const {
  const std::lock_guard lock(mutex_);
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  text += fmt::format(
      R"({{"ph": "M", "name": "process_name", "pid": {}, "args": {{"name": "rank {}"}}}})", rank,
      rank);
  for (size_t track = 0; track < kTrackNames.size(); ++track) {
    text += fmt::format(
        ",\n"
        R"({{"ph": "M", "name": "thread_name", "pid": {}, "tid": {}, "args": {{"name": "{}"}}}})",
        rank, track, kTrackNames[track]);
  }
  const auto micros = [](auto duration) {
    return std::chrono::duration<double, std::micro>(duration).count();
  };
  for (const Event& event : events_) {
    text += fmt::format(
        ",\n"
        R"({{"ph": "X", "name": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, )"
        R"("dur": {:.3f}, "args": {{"of": "{}"}}}})",
        event.name.data(), rank, static_cast<int>(event.track),
        micros(event.begin.time_since_epoch()), micros(event.end - event.begin),
        event.detail.data());
  }
  text += fmt::format("\n], \"eventsLeftOut\": {}}}\n", left_out_);
  AtomicFile out(file);
  out.write(text);
  out.publish();
}

TraceObserver::TraceObserver(Executor& x, Trace& trace)
    : x_(x), trace_(trace), last_(Trace::Clock::now()) {
  x_.observe(this);
}

void TraceObserver::completed(const char* operation, const ConstTensor& written) {
  record(Trace::Track::compute, operation, written);
}

void TraceObserver::waited(const char* operation, const ConstTensor& written) {
  record(Trace::Track::wait, operation, written);
}

void TraceObserver::record(Trace::Track track, const char* operation, const ConstTensor& written) {
  const auto now = Trace::Clock::now();
  trace_.record(track, operation, written.name(), last_, now);
  last_ = now;
}

}  // namespace gradus
