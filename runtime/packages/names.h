// Which names an archive may hold: those that stay inside the directory that it is unpacked to.
// Pure.
#pragma once

#include <string_view>

namespace troupe::packages {

inline constexpr size_t name_bytes_max = 4096;

// Relative, with plain components: none empty, "." or "..", no NUL.
bool is_plain_name(std::string_view name);
// Whether a symbolic link of this name may say `target`: relative, first up (not above the
// directory), then down. A ".." behind a name could lead out through another link.
bool stays_inside(std::string_view link, std::string_view target);
// "a/b" of "a/b/c"; empty of "a".
std::string_view parent_of(std::string_view name);
// 64 digits of lower case: nothing else becomes a file's name.
bool is_hash(std::string_view text);

}  // namespace troupe::packages
