// The text of a cell with one spelling for each value, as training spells it.
//
// The same rules as lirank_ext/data/text.py. A test compares the ids of hundreds of values.
#pragma once
#include "times.h"

namespace serve {

inline std::string spelled(std::string text, View kind, bool comma) {
  if (kind == "text") return text;
  if (kind == "number") {
    if (const auto plain = plain_number(text, comma)) return canonical_number(*plain);
    if (const auto value = truth(text)) return *value ? "1" : "0";
    return text;
  }
  if (kind == "boolean") {
    const auto value = truth(text);
    return value ? (*value ? "true" : "false") : text;
  }
  const double moment = seconds(text, kind);
  return moment >= kOldest && moment < kNewest ? iso(moment) : text;
}

}  // namespace serve
