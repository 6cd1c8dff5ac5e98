// The columns of a model, as configuration.json of an exported folder describes them.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "rows.h"

namespace serve {

struct Column {
  std::string name, table, key, separator, kind;
  std::vector<double> edges;
  bool is_split = false;  // a cell of text holds several ids
};

struct History {
  std::string name, actions, separator;
  Column candidate;
  bool newest_first;
};

struct TimePart {
  std::string column, part, form;
  double origin;
};

struct Scaling {
  double center, scale;
};

inline std::string text_or(const Json& value, const std::string& otherwise) {
  return value.is_null() ? otherwise : value.get<std::string>();
}

struct Schema {
  std::vector<std::string> numeric, columns;
  std::vector<Column> categorical;
  std::vector<History> histories;
  std::map<std::string, TimePart> times;
  std::map<std::string, std::string> indicators;
  std::map<std::string, Scaling> scaling;
  std::set<std::string> decimal_comma, missing;
  std::string popularity;
  size_t max_len;

  explicit Schema(const Json& model) : max_len(model.at("history").at("max_len")) {
    const Json& schema = model.at("schema");
    numeric = schema.at("numeric");
    popularity = text_or(schema.at("popularity"), "");
    indicators = schema.at("indicators");
    decimal_comma = schema.at("decimal_comma");
    missing = schema.at("missing");
    for (const Json& c : schema.at("categorical")) categorical.push_back(read_column(c));
    for (const Json& h : schema.at("history")) {
      const std::string name = h.at("candidate");
      for (const Column& column : categorical)
        if (column.name == name)
          histories.push_back({h.at("name"), text_or(h.at("actions"), ""), h.at("separator"),
                               column, h.at("newest_first")});
    }
    for (const Json& t : schema.at("times"))
      times[t.at("name")] = {t.at("column"), t.at("part"), t.at("form"), t.at("origin")};
    for (const auto& [name, s] : schema.at("scaling").items())
      scaling[name] = {s.at("center"), s.at("scale")};
    name_columns();
  }

  // What the values of a column are, as its categorical feature says.
  std::string kind(const std::string& name) const {
    for (const Column& c : categorical)
      if (c.name == name && c.edges.empty()) return c.kind;
    return "text";
  }

  // A column of ids that has no table of its own.
  Column plain(const std::string& name) const {
    return {name, "", name, "", kind(name), {}, false};
  }

  bool is_made(const Column& c) const {
    return times.count(c.name) || indicators.count(c.name) || !c.edges.empty();
  }

  // Whether a cell of the column may hold a list.
  bool may_list(const std::string& name) const { return lists_.count(name) > 0; }

 private:
  std::set<std::string> lists_;

  static Column read_column(const Json& c) {
    const std::string name = c.at("name"), separator = text_or(c.at("separator"), "");
    return {
        name,          c.at("table"),     text_or(c.at("prefix"), name), separator, c.at("kind"),
        c.at("edges"), !separator.empty()};
  }

  void add_column(const std::string& name) {
    std::string held = name;
    if (const auto part = times.find(name); part != times.end()) held = part->second.column;
    if (const auto other = indicators.find(name); other != indicators.end()) held = other->second;
    for (const std::string& known : columns)
      if (known == held) return;
    columns.push_back(held);
  }

  void name_columns() {
    for (const std::string& name : numeric) add_column(name);
    for (const Column& c : categorical) add_column(c.name);
    for (const History& h : histories) add_column(h.name);
    for (const History& h : histories)
      if (!h.actions.empty()) add_column(h.actions);
    if (!popularity.empty()) add_column(popularity);
    for (const Column& c : categorical)
      if (!is_made(c)) lists_.insert(c.name);
    for (const History& h : histories) lists_.insert({h.name, h.actions});
    for (const std::string& name : numeric) lists_.erase(name);
    for (const auto& [name, column] : indicators) lists_.erase(column);
    for (const auto& [name, part] : times) lists_.erase(part.column);
    for (const Column& c : categorical)
      if (is_made(c)) lists_.erase(c.name);
    lists_.erase(popularity);
  }
};

}  // namespace serve
