// From the rows of a request to the tensors that a model reads.
//
// The twin of lirank_ext/data/columns.py and features.py. The ids are hashes by the op
// lirank::hash_strings, the very one that hashed the training files.
#pragma once
#include <torch/torch.h>

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "schema.h"

namespace serve {

using Features = std::map<std::string, at::Tensor>;
using Places = std::vector<int64_t>;  // of ids, in the texts to hash

// Collects texts and hashes all of them in one call.
class Hasher {
 public:
  // The text that is hashed holds the length of the key, the key and the value.
  int64_t add(const std::string& key, View value) {
    const auto code_points =
        std::count_if(key.begin(), key.end(), [](char c) { return (c & 0xc0) != 0x80; });
    bytes_ += std::to_string(code_points) + ":" + key + "=";
    bytes_ += value;
    ends_.push_back((int64_t)bytes_.size());
    return (int64_t)ends_.size() - 2;
  }

  std::vector<int64_t> hashes() const {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("lirank::hash_strings", "")
                               .typed<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>();
    const at::Tensor bytes =
        torch::from_blob((void*)bytes_.data(), {(int64_t)bytes_.size()}, torch::kUInt8);
    const at::Tensor ends =
        torch::from_blob((void*)ends_.data(), {(int64_t)ends_.size()}, torch::kInt64);
    const at::Tensor out = op.call(bytes, ends, 0).contiguous();
    return {out.data_ptr<int64_t>(), out.data_ptr<int64_t>() + out.numel()};
  }

 private:
  std::string bytes_;
  std::vector<int64_t> ends_{0};
};

class Converter {
 public:
  Converter(const Schema& schema, const std::vector<Row>& rows) : schema_(schema), rows_(rows) {
    for (size_t i = 0; i < rows.size(); ++i)
      for (const std::string& column : schema.columns) check(i, column);
  }

  Features features() {
    Features made{{"numeric", numeric()}};
    std::vector<std::string> tables;
    for (const Column& c : schema_.categorical)
      if (std::find(tables.begin(), tables.end(), c.table) == tables.end())
        tables.push_back(c.table);
    std::map<std::string, Places> bags, offsets;
    for (const std::string& table : tables) fill(table, bags[table], offsets[table]);
    std::map<std::string, std::vector<Places>> past;
    for (const History& h : schema_.histories) read_history(h, past);
    Places popular;
    if (!schema_.popularity.empty())
      for (size_t i = 0; i < rows_.size(); ++i)
        popular.push_back(ids(i, schema_.plain(schema_.popularity))[0]);
    const std::vector<int64_t> hashes = hasher_.hashes();
    const auto looked_up = [&](Places places) {
      for (int64_t& place : places) place = hashes[(size_t)place];
      return places;
    };
    for (const std::string& table : tables) {
      made["ids/" + table] = tensor(looked_up(bags[table]));
      made["offsets/" + table] = tensor(offsets[table]);
    }
    for (const auto& [name, steps] : past) made["history/" + name] = padded(steps, hashes);
    for (const History& h : schema_.histories) {
      Places lengths;
      for (const Places& steps : past[h.name + "/items"]) lengths.push_back((int64_t)steps.size());
      made["history/" + h.name + "/lengths"] = tensor(lengths);
    }
    if (!schema_.popularity.empty()) made["popularity"] = tensor(looked_up(popular));
    return made;
  }

 private:
  const Schema& schema_;
  const std::vector<Row>& rows_;
  Hasher hasher_;

  static at::Tensor tensor(const std::vector<int64_t>& values) {
    return torch::tensor(values, torch::kInt64);
  }

  static std::string where(size_t i, const std::string& column) {
    return "row " + std::to_string(i + 1) + ": column '" + column + "' ";
  }

  void check(size_t i, const std::string& column) const {
    const auto found = rows_[i].find(column);
    if (found == rows_[i].end())
      throw Refused(where(i, column) + "is not there; write null where its value is missing");
    if (found->second.is_list && !schema_.may_list(column))
      throw Refused(where(i, column) + "holds a list, where one value was wanted");
  }

  const Cell& cell(size_t i, const std::string& column) const { return rows_[i].at(column); }

  bool has_comma(const std::string& column) const {
    return schema_.decimal_comma.count(column) > 0;
  }

  // The text of a value in a CSV file, "" where it is missing.
  std::string text_of(const Value& value, const std::string& column) const {
    std::string text = value.text;
    if (value.kind == Value::kNumber) {
      text = canonical_number(std::move(text));
      if (has_comma(column)) std::replace(text.begin(), text.end(), '.', ',');
    }
    return cleaned(text);
  }

  std::string cleaned(View text) const {
    std::string out(trimmed(text));
    return schema_.missing.count(out) ? "" : out;
  }

  std::string text_at(size_t i, const std::string& column) const {
    return text_of(cell(i, column).values[0], column);
  }

  // ---- numbers ------------------------------------------------------------------------------

  double number(size_t i, const std::string& column) const {
    const std::string text = text_at(i, column);
    if (text.empty()) return kNan;
    double value = kNan;
    if (const auto plain = plain_number(text, has_comma(column)))
      value = to_double(*plain);
    else if (const auto word = truth(text))
      value = *word;
    const char* wanted = std::isnan(value) ? "number" : "finite number";
    if (!std::isfinite(value))
      throw Refused(where(i, column) + "holds '" + text + "', where a " + wanted + " was wanted");
    return value;
  }

  double time_part(size_t i, const TimePart& part) const {
    double moment = kNan;
    const std::string text = text_at(i, part.column);
    if (!text.empty()) {
      moment = seconds(text, part.form);
      if (!(moment >= kOldest && moment < kNewest))
        throw Refused(where(i, part.column) + "holds '" + text + "', where a time (" + part.form +
                      ") was wanted");
    }
    if (part.part == "age") return (part.origin - moment) / kDay;
    const double days = std::floor(moment / kDay);
    if (part.part == "hour") return std::floor((moment - days * kDay) / 3600);
    const double weekday = std::fmod(days + 3, 7);  // 1970 began on a Thursday
    return weekday < 0 ? weekday + 7 : weekday;
  }

  float numeric_value(size_t i, const std::string& name) const {
    const auto part = schema_.times.find(name);
    if (part != schema_.times.end()) return (float)time_part(i, part->second);
    double value = number(i, name);
    const auto scaling = schema_.scaling.find(name);
    if (scaling != schema_.scaling.end())
      value = (value - scaling->second.center) / scaling->second.scale;
    if (std::isinf((float)value))
      throw Refused(where(i, name) + "holds a number too large for float32");
    return (float)value;
  }

  at::Tensor numeric() const {
    std::vector<float> values;
    for (size_t i = 0; i < rows_.size(); ++i)
      for (const std::string& name : schema_.numeric) values.push_back(numeric_value(i, name));
    const int64_t n = (int64_t)rows_.size(), width = (int64_t)schema_.numeric.size();
    return torch::tensor(values, torch::kFloat32).reshape({n, width});
  }

  // ---- ids ----------------------------------------------------------------------------------

  int64_t id(const Column& column, std::string text) {
    return hasher_.add(column.key, spelled(std::move(text), column.kind, has_comma(column.name)));
  }

  // The id of a feature that is made of a column: a part of a time, a bin, an indicator.
  int64_t made(size_t i, const Column& column) {
    std::string value;
    const auto part = schema_.times.find(column.name);
    const auto indicated = schema_.indicators.find(column.name);
    if (part != schema_.times.end()) {
      const double found = time_part(i, part->second);
      if (!std::isnan(found)) value = std::to_string((int64_t)found);
    } else if (indicated != schema_.indicators.end()) {
      if (!std::isnan(number(i, indicated->second))) value = "there";
    } else {
      const double found = number(i, column.name);
      const auto& edges = column.edges;
      const auto bin = std::upper_bound(edges.begin(), edges.end(), found) - edges.begin();
      if (!std::isnan(found)) value = "bin " + std::to_string(bin);
    }
    return hasher_.add(column.key, value);
  }

  Places ids(size_t i, const Column& column) {
    if (schema_.is_made(column)) return {made(i, column)};
    const Cell& held = cell(i, column.name);
    Places found;
    if (held.is_list) {
      for (const Value& value : held.values)
        found.push_back(id(column, text_of(value, column.name)));
      return found;
    }
    const std::string text = text_at(i, column.name);
    if (!column.is_split) return {id(column, text)};
    // An empty cell is an empty bag, and two separators in a row enclose nothing.
    for (size_t at = 0; at <= text.size();) {
      const size_t end = std::min(text.find(column.separator, at), text.size());
      const View piece = trimmed(View(text).substr(at, end - at));
      if (!piece.empty()) found.push_back(id(column, cleaned(piece)));
      at = end + column.separator.size();
    }
    return found;
  }

  // The ids of a table row by row, column by column within a row, and where each bag starts.
  void fill(const std::string& table, Places& bags, Places& offsets) {
    for (size_t i = 0; i < rows_.size(); ++i)
      for (const Column& column : schema_.categorical) {
        if (column.table != table) continue;
        offsets.push_back((int64_t)bags.size());
        for (const int64_t place : ids(i, column)) bags.push_back(place);
      }
  }

  void read_history(const History& history, std::map<std::string, std::vector<Places>>& past) {
    Column items = history.candidate;
    items.name = history.name, items.separator = history.separator, items.is_split = true;
    items.edges.clear();
    Column actions = schema_.plain(history.actions);
    actions.separator = history.separator, actions.is_split = true;
    for (size_t i = 0; i < rows_.size(); ++i) {
      const Places found = ids(i, items);
      past[history.name + "/items"].push_back(newest(found, history));
      if (history.actions.empty()) continue;
      const Places done = ids(i, actions);
      if (done.size() != found.size())
        throw Refused(where(i, history.actions) + "has " + std::to_string(done.size()) +
                      " actions, '" + history.name + "' " + std::to_string(found.size()) +
                      " items");
      past[history.name + "/actions"].push_back(newest(done, history));
    }
  }

  // The newest steps, newest first.
  Places newest(Places steps, const History& history) const {
    if (!history.newest_first) std::reverse(steps.begin(), steps.end());
    if (steps.size() > schema_.max_len) steps.resize(schema_.max_len);
    return steps;
  }

  // Zeros behind; at least one wide.
  static at::Tensor padded(const std::vector<Places>& rows, const std::vector<int64_t>& hashes) {
    size_t width = 1;
    for (const Places& row : rows) width = std::max(width, row.size());
    std::vector<int64_t> values(rows.size() * width, 0);
    for (size_t i = 0; i < rows.size(); ++i)
      for (size_t j = 0; j < rows[i].size(); ++j)
        values[i * width + j] = hashes[(size_t)rows[i][j]];
    return tensor(values).reshape({(int64_t)rows.size(), (int64_t)width});
  }
};

}  // namespace serve
