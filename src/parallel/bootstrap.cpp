#include "parallel/bootstrap.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>

#include "core/control_group.h"
#include "core/error.h"
#include "parallel/bootstrap_launch.h"

#if GRADUS_WITH_MPI
#include "parallel/mpi_communicator.h"
#include "parallel/mpi_engine.h"
#else
namespace gradus {
class MpiEngine {};
}  // namespace gradus
#endif

namespace gradus {
namespace {

constexpr double kDefaultTimeout = 600.0;
constexpr const char* kTimeoutVariable = "GRADUS_COMMUNICATION_TIMEOUT";

const char* environment(const char* name) { return std::getenv(name); }

#if GRADUS_WITH_MPI
double timeout_of(const BootstrapOptions& options) {
  if (options.communication_timeout_s.has_value()) return *options.communication_timeout_s;
  const char* text = environment(kTimeoutVariable);
  if (text == nullptr || *text == '\0') return kDefaultTimeout;
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  if (*end != '\0' || !(seconds > 0)) {
    throw ConfigError("{}={} is not a number of seconds above 0", kTimeoutVariable, text);
  }
  return seconds;
}
#endif

void print_failure(int rank, int size, const std::string& message) noexcept {
  std::fflush(stdout);
  if (size > 1) {
    std::fprintf(stderr, "gradus: rank %d of %d: %s\n", rank, size, message.c_str());
  } else {
    std::fprintf(stderr, "gradus: %s\n", message.c_str());
  }
  std::fflush(stderr);
}

/// Of /dev/shm, in bytes; -1 where there is none.
int64_t free_shared_memory() {
  struct statvfs status {};
  if (::statvfs("/dev/shm", &status) != 0) return -1;
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

std::string message_of(const std::exception& exception) {
  const Error* error = dynamic_cast<const Error*>(&exception);
  return fmt::format("{}: {}", error != nullptr ? error->kind() : "error", exception.what());
}

}  // namespace

Bootstrap::Bootstrap(const BootstrapOptions& options) {
  const Launch launch = detect_launch(environment);
  if (!launch.parallel()) overlooked_ = overlooked_ranks(environment);
  try {
    start(launch, options);
  } catch (const std::exception& error) {
    // Printed once as soon as the ranks can talk about who prints.
    if (size_ > 1) abort(message_of(error));
    throw;
  }
}

void Bootstrap::start(const Launch& launch, const BootstrapOptions& options) {
  if (launch.parallel()) {
    const std::string crowded = crowded_shared_memory(environment, free_shared_memory());
    if (!crowded.empty()) spdlog::warn("{}", crowded);
    start_engine(options);
    if (launch.size.has_value() && *launch.size != size_) {
      // Going on would train as many copies of the model as there are processes.
      throw MpiError(
          "{} started {} ranks, but MPI sees {}: the launcher does not belong to the MPI library "
          "that gradus is linked with; use that library's mpirun, or srun --mpi=pmix",
          launch.launcher, *launch.size, size_);
    }
  }
  divide_cores(options.bind_cores);
  divide_quota();
}

Bootstrap::~Bootstrap() {
  if (size_ > 1 && !finished_) abort("this rank left the job before its end");
}

void Bootstrap::divide_cores(bool bind) {
  const std::string mine =
      fmt::format("{} {} {}", machine_, local_rank_, to_string(affinity_of_thread()));
  std::vector<CpuSet> allowed(static_cast<size_t>(local_size_));
  std::vector<int> ranks(allowed.size());  // of this machine: not consecutive with --map-by node
  const std::vector<std::string> of_ranks = exchange(mine);
  for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
    const std::string& theirs = of_ranks[rank];
    int machine = 0;
    int local_rank = 0;
    int consumed = 0;
    std::sscanf(theirs.c_str(), "%d %d %n", &machine, &local_rank, &consumed);
    if (machine != machine_) continue;
    allowed[static_cast<size_t>(local_rank)] =
        parse_cpu_set(theirs.substr(static_cast<size_t>(consumed)));
    ranks[static_cast<size_t>(local_rank)] = static_cast<int>(rank);
  }
  const CpuSet& own = allowed[static_cast<size_t>(local_rank_)];
  cores_ = share_cores(allowed, local_rank_, cores_of_machine(own));
  if (cores_.shared && rank_ == machine_) {
    spdlog::warn(
        "{} ranks share {} CPUs of this machine: one thread a rank, and they slow each "
        "other down",
        local_size_, own.size());
  }
  const std::string overlaps = rank_ == machine_ ? overlaps_of(allowed, ranks) : "";
  if (!overlaps.empty()) {
    spdlog::warn(
        "core sets that the launcher gave to ranks of this machine overlap: {}: they slow each "
        "other down; give all ranks the same set, or sets of their own",
        overlaps);
  }
  if (!bind || cores_.cpus == own) return;
  set_affinity_of_thread(cores_.cpus);
#if GRADUS_WITH_MPI
  if (engine_ != nullptr) engine_->call([this] { set_affinity_of_thread(cores_.cpus); });
#endif
}

/// Ranks in one control group share the CPU time that it grants.
void Bootstrap::divide_quota() {
  const CpuQuota quota = control_group_cpus("/");
  const std::string mine = fmt::format("{} {} {}", machine_, quota.limited(), quota.group);
  const auto sharers = std::ranges::count(exchange(mine), mine);
  if (quota.limited()) {
    cores_.threads = std::min(cores_.threads, quota.threads(static_cast<int>(sharers)));
  }
}

void Bootstrap::abort(const std::string& message) noexcept { abort(message, EXIT_FAILURE); }

void Bootstrap::abort(const std::string& message, int exit_code) noexcept {
#if GRADUS_WITH_MPI
  if (engine_ != nullptr) {
    if (!engine_->claim_report()) std::this_thread::sleep_for(kOtherRankPatience);
    print_failure(rank_, size_, message);
    std::this_thread::sleep_for(kForwarding);
    engine_->abort(exit_code);
  }
#endif
  print_failure(rank_, size_, message);
  std::_Exit(exit_code);
}

#if GRADUS_WITH_MPI

void Bootstrap::start_engine(const BootstrapOptions& options) {
  MpiEngineOptions engine_options;
  std::exception_ptr problem;  // for when there is an engine to agree on who prints it
  try {
    engine_options.timeout_s = timeout_of(options);
  } catch (const ConfigError&) {
    problem = std::current_exception();
  }
  engine_options.late = options.late;
  engine_options.report = [](int rank, int size, const std::string& failure) {
    print_failure(rank, size, message_of(MpiError("{}", failure)));
  };
  engine_options.limits.message_bytes = options.message_bytes;
  engine_options.limits.direct_bytes = options.direct_all_reduce_bytes;
  engine_ = std::make_unique<MpiEngine>(engine_options);
  rank_ = engine_->rank();
  size_ = engine_->size();
  local_rank_ = engine_->local_rank();
  local_size_ = engine_->local_size();
  machine_ = engine_->machine();
  if (problem != nullptr) std::rethrow_exception(problem);
}

std::vector<std::string> Bootstrap::exchange(std::string_view mine) {
  if (engine_ == nullptr || size_ == 1) return {std::string(mine)};
  const auto gather = [&](std::byte* all, const void* own, int64_t bytes) {
    MpiOperationSpec spec;
    spec.collective = Collective::all_gather;
    spec.out = all;
    spec.in = static_cast<const std::byte*>(own);
    spec.count = bytes;
    engine_->wait(engine_->submit(engine_->world(), spec));
  };
  const int64_t length = static_cast<int64_t>(mine.size());
  std::vector<int64_t> lengths(static_cast<size_t>(size_));
  gather(reinterpret_cast<std::byte*>(lengths.data()), &length, sizeof(length));
  const size_t longest = static_cast<size_t>(*std::ranges::max_element(lengths));
  std::string padded(mine);
  padded.resize(longest);
  std::string all(longest * static_cast<size_t>(size_), '\0');
  gather(reinterpret_cast<std::byte*>(all.data()), padded.data(), static_cast<int64_t>(longest));
  std::vector<std::string> out;
  for (size_t rank = 0; rank < lengths.size(); ++rank) {
    out.push_back(all.substr(rank * longest, static_cast<size_t>(lengths[rank])));
  }
  return out;
}

std::unique_ptr<Communicator> Bootstrap::split(int color, const std::string& name) {
  if (engine_ != nullptr) {
    MpiGroup& group = engine_->split(color, name);
    if (group.size() > 1) return std::make_unique<MpiCommunicator>(*engine_, group, *this);
    engine_->release(group);
  }
  return std::make_unique<SelfCommunicator>(name, rank_, *this);
}

void Bootstrap::trace(Trace* trace) noexcept {
  if (engine_ != nullptr) engine_->trace(trace);
}

void Bootstrap::finish() {
  if (engine_ != nullptr && !finished_) engine_->finish();
  finished_ = true;
}

#else

void Bootstrap::start_engine(const BootstrapOptions&) {
  throw MpiError(
      "started as one of several ranks, but this build of gradus has no MPI: start it "
      "plainly, or build it with -DGRADUS_MPI=ON");
}

std::vector<std::string> Bootstrap::exchange(std::string_view mine) { return {std::string(mine)}; }

std::unique_ptr<Communicator> Bootstrap::split(int, const std::string& name) {
  return std::make_unique<SelfCommunicator>(name, rank_, *this);
}

void Bootstrap::trace(Trace*) noexcept {}

void Bootstrap::finish() { finished_ = true; }

#endif

int run_job(const BootstrapOptions& options, const std::function<int(Bootstrap&)>& body) noexcept {
  std::unique_ptr<Bootstrap> bootstrap;
  try {
    bootstrap = std::make_unique<Bootstrap>(options);
    const int code = body(*bootstrap);
    bootstrap->finish();
    return code;
  } catch (const std::exception& exception) {
    const std::string message = message_of(exception);
    if (bootstrap != nullptr && bootstrap->size() > 1) bootstrap->abort(message);
    print_failure(0, 1, message);
  } catch (...) {
    const std::string message = "error: an exception that is not a std::exception";
    if (bootstrap != nullptr && bootstrap->size() > 1) bootstrap->abort(message);
    print_failure(0, 1, message);
  }
  return EXIT_FAILURE;
}

}  // namespace gradus
