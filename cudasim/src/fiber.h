#pragma once

#include <boost/context/fiber.hpp>
#include <cstddef>
#include <functional>

namespace cudasim {

/// One thread of a block: a stack of its own, on which `body` runs anew each time it is started.
/// Always resumed by the same OS thread.
class Fiber {
 public:
  /// `number` colours the top of the stack: equal offsets in all of them would share one cache set.
  Fiber(int number, std::function<void()> body);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Runs the body, from its start or from where it suspended itself, until it suspends itself or
  /// ends.
  void resume();
  /// From within: back to who resumed it.
  void suspend();
  /// Forgets a suspended body and what is on its stack (of which nothing is destroyed).
  void abandon();

 private:
  void create();

  std::function<void()> body_;
  std::byte* mapping_ = nullptr;
  std::byte* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  boost::context::fiber inside_;   ///< the body, while it is suspended
  boost::context::fiber outside_;  ///< who resumed it, while it runs
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
  [[maybe_unused]] void* thread_sanitizer_ = nullptr;
  [[maybe_unused]] void* outside_thread_sanitizer_ = nullptr;
};

}  // namespace cudasim
