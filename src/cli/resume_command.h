#pragma once

#include <string>

#include "cli/config_arguments.h"
#include "parallel/bootstrap.h"

namespace gradus::cli {

/// An argument as a shell takes it back: quoted where a character may mean something to it.
std::string shell_word(const std::string& text);

/// The command that goes on with a run, as a user types it: what a script that started gradus says
/// in GRADUS_RESUME_COMMAND, else as gradus was started. program: argv[0].
std::string resume_command(const Bootstrap& bootstrap, const std::string& program,
                           const ConfigArguments& arguments, const Config& config);

}  // namespace gradus::cli
