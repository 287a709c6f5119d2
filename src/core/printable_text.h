#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace gradus {

/// At most `most` bytes of text, cut between UTF-8 characters and then marked with an ellipsis.
std::string shortened(std::string_view text, size_t most);

/// Text on one line: what would end the line or move the cursor (control characters) is written as
/// an escape, "\x0a".
std::string one_line(std::string_view text);

/// Text from a file made fit for a message: on one line, long text cut.
std::string printable(std::string_view text);

}  // namespace gradus
