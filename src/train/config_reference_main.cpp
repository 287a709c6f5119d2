// Prints docs/configuration.md.
#include <fmt/format.h>

#include "train/config.h"

int main() { fmt::print("{}", gradus::config_reference_markdown()); }
