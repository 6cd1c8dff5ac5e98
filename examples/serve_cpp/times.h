// Dates and times in their usual spellings, read as seconds since 1970.
//
// The same rules as lirank_ext/data/times.py.
#pragma once
#include "values.h"

namespace serve {

constexpr double kDay = 86400;
constexpr double kOldest = -377705116800, kNewest = 253402300800;  // the years -9999 to 9999

// Days since 1970 of a date (Howard Hinnant's algorithm, in the public domain), and back.
inline int64_t days_from_civil(int64_t y, int64_t m, int64_t d) {
  y -= m <= 2;
  const int64_t era = (y >= 0 ? y : y - 399) / 400, of_era = y - era * 400;
  const int64_t of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
  return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

struct Date {
  int64_t year, month, day;
};

inline Date civil_from_days(int64_t z) {
  z += 719468;
  const int64_t era = (z >= 0 ? z : z - 146096) / 146097, day_of_era = z - era * 146097;
  const int64_t year_of_era =
      (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const int64_t day_of_year =
      day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const int64_t mp = (5 * day_of_year + 2) / 153;
  const int64_t month = mp < 10 ? mp + 3 : mp - 9;
  return {year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * mp + 2) / 5 + 1};
}

inline double unit_of(View form) {
  if (form == "s") return 1.0;
  if (form == "ms") return 1e-3;
  if (form == "us") return 1e-6;
  return form == "ns" ? 1e-9 : 0.0;
}

struct DayFields {
  View year, month, day;
};

inline std::optional<DayFields> read_day(Reader& r, View form) {
  const bool year_first = form == "y-m-d", joined = form == "yyyymmdd";
  const View marks = year_first ? "-/." : form == "d.m.y" ? "." : "/-";
  const size_t least = joined ? 2 : 1;
  std::optional<View> a, b, c;
  a = year_first || joined ? r.digits(4, 4) : r.digits(least, 2);
  if (!a || (!joined && !r.any_of(marks))) return {};
  b = r.digits(least, 2);
  if (!b || (!joined && !r.any_of(marks))) return {};
  c = year_first || joined ? r.digits(least, 2) : r.digits(4, 4);
  if (!c) return {};
  if (year_first || joined) return DayFields{*a, *b, *c};
  if (form == "m/d/y") return DayFields{*c, *a, *b};
  return DayFields{*c, *b, *a};
}

struct Clock {
  double hour = 0, minute = 0, second = 0, zone = 0;
  char half = 0;  // 'a' or 'p'
};

inline bool read_clock(Reader& r, Clock& clock) {
  if (r.done()) return true;
  if (!r.any_of("T ")) return false;
  const auto hour = r.digits(1, 2);
  if (!hour || !r.take(":")) return false;
  const auto minute = r.digits(2, 2);
  if (!minute) return false;
  clock.hour = to_double(*hour), clock.minute = to_double(*minute);
  if (r.take(":")) {
    const auto second = r.digits(2, 2);
    if (!second) return false;
    std::string written(*second);
    const size_t before = r.at;
    if (r.any_of(".,")) {
      if (const auto fraction = r.digits(1))
        (written += '.') += *fraction;
      else
        r.at = before;
    }
    clock.second = to_double(written);
  }
  const size_t before = r.at;
  r.spaces();
  const char letter = (char)(r.next() | 0x20);
  if (r.any_of("AaPp") && (r.take("."), r.any_of("Mm")))
    r.take("."), clock.half = letter;
  else
    r.at = before;
  r.spaces();
  if (r.take("Z") || r.take("UTC") || r.take("GMT") || r.done()) return r.done();
  const double sign = r.next() == '-' ? -1 : 1;
  if (!r.any_of("+-")) return false;
  const auto hours = r.digits(2, 2);
  if (!hours) return false;
  r.take(":");
  const auto minutes = r.digits(2, 2);
  clock.zone = sign * (to_double(*hours) * 3600 + (minutes ? to_double(*minutes) * 60 : 0));
  return r.done();
}

// Seconds since 1970; NaN for text that is no time of this form.
inline double seconds(View text, View form) {
  if (const double unit = unit_of(form)) return is_number(text) ? to_double(text) * unit : kNan;
  Reader r{text};
  Clock clock;
  const auto fields = read_day(r, form);
  if (!fields || !read_clock(r, clock)) return kNan;
  const auto year = (int64_t)to_double(fields->year), month = (int64_t)to_double(fields->month);
  const auto day = (int64_t)to_double(fields->day);
  if (month < 1 || month > 12 || day < 1) return kNan;
  if (clock.hour >= 24 || clock.minute >= 60 || clock.second >= 61) return kNan;
  if (clock.half) {
    if (clock.hour < 1 || clock.hour > 12) return kNan;
    clock.hour = std::fmod(clock.hour, 12) + (clock.half == 'p' ? 12 : 0);
  }
  const int64_t days = days_from_civil(year, month, 1) + day - 1;
  if (civil_from_days(days).month != month) return kNan;  // not the 30th of February
  const double total = (double)days * kDay + clock.hour * 3600 + clock.minute * 60 + clock.second;
  return total - clock.zone;
}

// Such as 2024-12-31 or 2024-12-31T23:59:59.5.
inline std::string iso(double moment) {
  const int64_t micros = (int64_t)std::nearbyint(moment * 1e6), of_day = 86400000000;
  const int64_t days = micros / of_day - (micros % of_day < 0);
  const int64_t rest = micros - days * of_day;
  const Date date = civil_from_days(days);
  char text[80];
  snprintf(text, sizeof text, "%s%04lld-%02lld-%02lld", date.year < 0 ? "-" : "",
           (long long)std::abs(date.year), (long long)date.month, (long long)date.day);
  std::string out = text;
  if (rest == 0) return out;
  const long long second = rest / 1000000;
  snprintf(text, sizeof text, "T%02lld:%02lld:%02lld.%06lld", second / 3600, second / 60 % 60,
           second % 60, (long long)(rest % 1000000));
  out += text;
  out.resize(out.find_last_not_of('0') + 1);
  // Whole seconds keep their zeros: what ended in ".000000" ends in "." now.
  if (out.back() == '.') out.pop_back();
  return out;
}

}  // namespace serve
