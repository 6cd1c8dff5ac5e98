// What the text of a cell means: white space around it, numbers and truth values.
//
// The same rules as lirank_ext/data/values.py and text.py, cell by cell.
#pragma once
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace serve {

// A request that cannot be read; the message is one sentence for the one who sent it.
struct Refused : std::runtime_error {
  std::string sentence;  // whole, where what() ends at a NUL that a request may hold
  explicit Refused(const std::string& text) : std::runtime_error(text), sentence(text) {}
};

using View = std::string_view;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Reads a text from left to right.
struct Reader {
  View text;
  size_t at = 0;

  bool done() const { return at == text.size(); }
  char next() const { return done() ? '\0' : text[at]; }

  bool take(View wanted) {
    if (text.substr(at, wanted.size()) != wanted) return false;
    at += wanted.size();
    return true;
  }
  bool any_of(View characters) {
    if (done() || characters.find(text[at]) == View::npos) return false;
    ++at;
    return true;
  }
  // From `least` to `most` digits, as many as there are.
  std::optional<View> digits(size_t least, size_t most = std::string::npos) {
    size_t n = 0;
    while (n < most && at + n < text.size() && is_digit(text[at + n])) ++n;
    if (n < least) return {};
    at += n;
    return text.substr(at - n, n);
  }
  void spaces() {
    while (any_of("\t\n\f\r ")) continue;
  }
};

// ---- white space ---------------------------------------------------------------------------

// The length in bytes of the white space at the start of a text; 0 if there is none.
inline size_t space_length(View text) {
  if (text.empty()) return 0;
  const unsigned char c = text[0];
  if ((c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20)) return 1;
  for (View two : {"\xc2\x85", "\xc2\xa0"})
    if (text.substr(0, 2) == two) return 2;
  for (View three : {"\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f",
                     "\xe3\x80\x80"})
    if (text.substr(0, 3) == three) return 3;
  const bool is_quad = text.size() >= 3 && text.substr(0, 2) == "\xe2\x80" &&
                       (unsigned char)text[2] >= 0x80 && (unsigned char)text[2] <= 0x8a;
  return is_quad ? 3 : 0;
}

inline View trimmed(View text) {
  while (const size_t n = space_length(text)) text.remove_prefix(n);
  for (bool more = true; more && !text.empty();) {
    more = false;
    for (size_t n = 1; n <= 3 && n <= text.size(); ++n)
      if (space_length(text.substr(text.size() - n)) == n) {
        text.remove_suffix(n);
        more = true;
        break;
      }
  }
  return text;
}

// ---- numbers -------------------------------------------------------------------------------

inline bool is_number(View text) {
  Reader r{text};
  r.any_of("+-");
  if (r.digits(1)) {
    if (r.take(".")) r.digits(0);
  } else if (!r.take(".") || !r.digits(1)) {
    return false;
  }
  if (r.any_of("eE")) {
    r.any_of("+-");
    if (!r.digits(1)) return false;
  }
  return r.done();
}

// What may stand between thousands: an apostrophe and spaces, plain or of fixed width.
inline bool take_mark(Reader& r) {
  return r.take("'") || r.take(" ") || r.take("\xc2\xa0") || r.take("\xe2\x80\xaf");
}

// One to three digits and then groups of three; at least one of these.
template <typename Mark>
bool take_groups(Reader& r, const Mark& mark) {
  if (!r.digits(1, 3)) return false;
  int groups = 0;
  for (;; ++groups) {
    const size_t before = r.at;
    if (!mark(r) || !r.digits(3, 3)) {
      r.at = before;
      return groups > 0;
    }
  }
}

inline std::string without_marks(View text, char mark) {
  std::string out;
  for (Reader r{text}; !r.done();)
    if (!take_mark(r)) {
      if (r.next() != mark) out += r.next();
      ++r.at;
    }
  return out;
}

inline bool is_marked(View text) {
  const auto match = [&](const auto& mark) {
    Reader r{text};
    r.any_of("+-");
    if (!take_groups(r, mark)) return false;
    if (r.take(".") && !r.digits(1)) return false;
    return r.done();
  };
  return match([](Reader& r) { return r.take(","); }) || match(take_mark);
}

inline bool is_comma_number(View text) {
  const auto match = [&](const auto& whole) {
    Reader r{text};
    r.any_of("+-");
    whole(r);
    if (r.take(",")) r.digits(0);
    return r.done();
  };
  if (text.find_first_of("0123456789") == View::npos) return false;
  return match([](Reader& r) { r.digits(0); }) ||
         match([](Reader& r) { take_groups(r, [](Reader& s) { return s.take("."); }); }) ||
         match([](Reader& r) { take_groups(r, take_mark); });
}

// A number without thousands marks and with a decimal point; none for other text.
inline std::optional<std::string> plain_number(View text, bool comma) {
  if (comma) {
    if (!is_comma_number(text)) return {};
    std::string plain = without_marks(text, '.');
    for (char& c : plain)
      if (c == ',') c = '.';
    return plain;
  }
  if (is_number(text)) return std::string(text);
  if (is_marked(text)) return without_marks(text, ',');
  return {};
}

// Sign, digits and exponent of a plain number: value = 0.digits * 10^point.
struct Decimal {
  bool negative = false, in_range = true;
  std::string digits;  // without zeros in front; empty for 0
  int64_t point = 0;

  explicit Decimal(View text) {
    Reader r{text};
    negative = r.next() == '-';
    r.any_of("+-");
    int64_t whole = 0;
    for (bool behind = false; !r.done() && r.next() != 'e' && r.next() != 'E'; ++r.at) {
      if (r.next() == '.') {
        behind = true;
        continue;
      }
      if (digits.empty() && r.next() == '0') {
        whole -= behind;
        continue;
      }
      digits += r.next();
      whole += !behind;
    }
    int64_t exponent = 0;
    if (r.any_of("eE")) {
      r.take("+");
      const View written = text.substr(r.at);
      const auto read = std::from_chars(written.begin(), written.end(), exponent);
      // The largest exponent that Python's decimal module takes.
      in_range = read.ec == std::errc() && std::abs(exponent) <= 999999999999999999;
      if (!in_range) exponent = written[0] == '-' ? -1000000000 : 1000000000;
    }
    point = whole + exponent;
  }
};

// 7, 7.0 and +7e0 become "7", .50 becomes "0.5".
inline std::string canonical_number(std::string text) {
  const size_t dot = text.find('.');
  if (dot != std::string::npos && dot > 0 && is_digit(text[dot - 1]) &&
      text.find_first_not_of('0', dot + 1) == std::string::npos)
    text.resize(dot);
  const Decimal number(text);
  if (!number.in_range) return text;
  if (number.digits.empty()) return "0";
  // Beyond float64 a number written out would only be long.
  if (std::abs(number.point - 1) > 400) return text;
  const int64_t size = (int64_t)number.digits.size(), point = number.point;
  std::string out;
  if (point <= 0)
    out = "0." + std::string((size_t)-point, '0') + number.digits;
  else if (point >= size)
    out = number.digits + std::string((size_t)(point - size), '0');
  else
    out = number.digits.substr(0, (size_t)point) + "." + number.digits.substr((size_t)point);
  if (out.find('.') != std::string::npos) {
    out.resize(out.find_last_not_of('0') + 1);
    if (out.back() == '.') out.pop_back();
  }
  return number.negative ? "-" + out : out;
}

// The nearest float64 of a plain number; infinite beyond its range.
inline double to_double(View plain) {
  if (!plain.empty() && plain[0] == '+') plain.remove_prefix(1);
  double value = 0;
  const auto read = std::from_chars(plain.begin(), plain.end(), value);
  if (read.ec == std::errc()) return value;
  const Decimal number(plain);
  if (number.digits.empty() || number.point < 0) return number.negative ? -0.0 : 0.0;
  return number.negative ? -HUGE_VAL : HUGE_VAL;
}

// ---- truth values --------------------------------------------------------------------------

inline bool equals_in_lower_case(View text, View word) {
  if (text.size() != word.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i] >= 'A' && text[i] <= 'Z' ? (char)(text[i] + 32) : text[i];
    if (c != word[i]) return false;
  }
  return true;
}

inline std::optional<bool> truth(View text) {
  for (const bool value : {true, false}) {
    if (equals_in_lower_case(text, value ? "true" : "false")) return value;
    Reader r{text};
    if (!r.take(value ? "1" : "0")) continue;
    if (r.take("."))
      while (r.take("0")) continue;
    if (r.done()) return value;
  }
  return {};
}

}  // namespace serve
