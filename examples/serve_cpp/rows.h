// The rows of a JSON request: one object, or a list of objects.
//
// Numbers keep the digits that JSON spells, which a parsed double would lose. So the text is read
// event by event instead of into a tree.
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text.h"

namespace serve {

using Json = nlohmann::json;

struct Value {
  enum Kind { kMissing, kText, kNumber, kTruth } kind = kMissing;
  std::string text;
};

// What a cell holds: one value, or a list of them.
struct Cell {
  bool is_list = false;
  std::vector<Value> values;
};

using Row = std::map<std::string, Cell>;

class RowsHandler : public nlohmann::json_sax<Json> {
 public:
  std::vector<Row> rows;

  bool null() override { return add({}); }
  bool boolean(bool value) override { return add({Value::kTruth, value ? "true" : "false"}); }
  bool number_integer(number_integer_t value) override {
    return add({Value::kNumber, std::to_string(value)});
  }
  bool number_unsigned(number_unsigned_t value) override {
    return add({Value::kNumber, std::to_string(value)});
  }
  bool number_float(number_float_t, const string_t& text) override {
    return add({Value::kNumber, text});
  }
  bool string(string_t& value) override { return add({Value::kText, value}); }
  bool binary(binary_t&) override { return false; }
  bool key(string_t& name) override {
    cell_ = &rows.back()[name];
    *cell_ = {};
    column_ = name;
    return true;
  }
  bool start_object(std::size_t) override {
    if (in_row_) refuse_nested("an object");
    in_row_ = true;
    rows.emplace_back();
    return true;
  }
  bool end_object() override {
    in_row_ = false;
    return true;
  }
  bool start_array(std::size_t) override {
    if (in_row_) {
      if (cell_->is_list) refuse_nested("a list in a list");
      cell_->is_list = true;
    } else if (outer_++ > 0) {
      refuse_no_row();
    }
    return true;
  }
  bool end_array() override { return true; }
  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::detail::exception& e) override {
    if (e.id == 406) throw Refused("the request holds a number that is beyond float64");
    throw Refused("the request is no JSON, from character " + std::to_string(at) + " on");
  }

 private:
  Cell* cell_ = nullptr;
  std::string column_;
  bool in_row_ = false;
  int outer_ = 0;

  [[noreturn]] void refuse_no_row() const {
    throw Refused("row " + std::to_string(rows.size() + 1) +
                  ": wanted an object of column names and values");
  }
  [[noreturn]] void refuse_nested(const std::string& what) const {
    throw Refused("row " + std::to_string(rows.size()) + ": column '" + column_ + "' holds " +
                  what + ", where text, a number, true, false or null was wanted");
  }
  bool add(Value value) {
    if (!in_row_) refuse_no_row();
    cell_->values.push_back(std::move(value));
    return true;
  }
};

inline std::vector<Row> parse_rows(const std::string& text) {
  RowsHandler handler;
  Json::sax_parse(text, &handler);
  if (handler.rows.empty()) throw Refused("the request holds no rows");
  return std::move(handler.rows);
}

}  // namespace serve
