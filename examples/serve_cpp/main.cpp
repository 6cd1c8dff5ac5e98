// Serves a folder that `lirank-ext export` wrote, without Python.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include "tensors.h"
#ifdef WITH_HTTP
#include <httplib.h>
#endif

namespace serve {

constexpr const char* kFormat = "lirank_ext served model 1";
constexpr double kTolerance = 1e-4;
const char* const kUsage = R"(usage: serve DIR [--port N] [--threads N] [--features]

Scores rows by a folder that `lirank-ext export` wrote. Every line of standard input is one row (a
JSON object of column names and values) or a list of rows; a line of probabilities answers it.
  --port N      answer POST /score and GET /health on this port instead
  --threads N   CPU threads of a request (default 1)
  --features    print the tensors that the model would read in place of probabilities
)";

// Something about the folder or the command line that has to be changed.
struct Unfit : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw Unfit(path.string() + ": cannot be read");
  return Json::parse(file);
}

int level(const std::string& processor) {
  return processor == "AVX512" ? 2 : processor == "AVX2" ? 1 : 0;
}

class Model {
 public:
  Model(const std::filesystem::path& folder, bool only_features)
      : manifest_(read_json(folder / "manifest.json")), schema_(checked(folder).at("model")) {
    const std::string library = folder / "liblirank.so";
    if (!dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw Unfit(dlerror());
    if (only_features) return;
    const std::string wanted = manifest_.at("processor"), here = at::get_cpu_capability();
    if (level(here) < level(wanted))
      throw Unfit("the package was compiled for " + wanted + ", and this processor has " + here +
                  ": export the model on a machine like this one");
    loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(folder / "model.pt2");
    check_example(read_json(folder / "example.json"));
  }

  Features features(const std::string& request) const { return read(parse_rows(request)); }

  // The answer to a request: a list of probabilities for every row.
  Json score(const std::string& request) { return answer(run(parse_rows(request))); }

  const Json& inputs() const { return manifest_.at("inputs"); }

 private:
  Json manifest_;
  Schema schema_;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;

  // The configuration of a folder whose files are what the manifest says.
  Json checked(const std::filesystem::path& folder) const {
    if (manifest_.at("format") != kFormat)
      throw Unfit("wanted a folder of format '" + std::string(kFormat) + "', got '" +
                  manifest_.at("format").get<std::string>() + "'");
    for (const auto& [name, file] : manifest_.at("files").items())
      if (std::filesystem::file_size(folder / name) != file.at("bytes"))
        throw Unfit((folder / name).string() + ": has not the size that the manifest says");
    return read_json(folder / "configuration.json");
  }

  Features read(const std::vector<Row>& rows) const { return Converter(schema_, rows).features(); }

  at::Tensor run(const std::vector<Row>& rows) {
    const c10::InferenceMode no_gradients;
    Features made = read(rows);
    std::vector<at::Tensor> given;
    for (const Json& input : inputs()) given.push_back(made.at(input.at("name")));
    return loader_->run(given)[0].contiguous();
  }

  static Json answer(const at::Tensor& probabilities) {
    Json rows = Json::array();
    const float* at = probabilities.const_data_ptr<float>();
    for (int64_t i = 0; i < probabilities.size(0); ++i) {
      rows.push_back(std::vector<float>(at, at + probabilities.size(1)));
      at += probabilities.size(1);
    }
    return {{"probabilities", rows}};
  }

  // The rows that were scored when the model was exported have to get the same scores here.
  void check_example(const Json& example) {
    const Json got = score(example.at("rows").dump()).at("probabilities");
    const Json& wanted = example.at("probabilities");
    double worst = got.size() == wanted.size() ? 0 : HUGE_VAL;
    for (size_t i = 0; i < wanted.size() && i < got.size(); ++i)
      for (size_t j = 0; j < wanted[i].size(); ++j) {
        const double off = std::abs(wanted[i][j].get<double>() - got[i].at(j).get<double>());
        worst = std::isnan(off) ? HUGE_VAL : std::max(worst, off);  // max would pass NaN over
      }
    if (!(worst <= kTolerance))
      throw Unfit("the example rows get other scores than in Python, by " + std::to_string(worst));
    std::cerr << "example rows: largest difference from Python " << worst << std::endl;
  }
};

Json describe(const Features& features) {
  Json out;
  for (const auto& [name, value] : features) {
    const at::Tensor flat = value.flatten();
    out[name]["shape"] = value.sizes().vec();
    Json& values = out[name]["values"] = Json::array();
    for (int64_t i = 0; i < flat.numel(); ++i)
      if (value.is_floating_point())
        values.push_back(flat[i].item<float>());
      else
        values.push_back(flat[i].item<int64_t>());
  }
  return out;
}

template <typename Call>
Json or_error(const Call& call) {
  try {
    return call();
  } catch (const Refused& error) {
    return {{"error", error.sentence}};
  }
}

void answer_lines(Model& model, bool only_features) {
  for (std::string line; std::getline(std::cin, line);) {
    const Json answer = or_error([&]() -> Json {
      return only_features ? describe(model.features(line)) : model.score(line);
    });
    std::cout << answer.dump() << std::endl;
  }
}

#ifdef WITH_HTTP
void answer_http(Model& model, int port) {
  httplib::Server server;
  server.Get("/health", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("{\"status\":\"ok\"}", "application/json");
  });
  server.Post("/score", [&](const httplib::Request& request, httplib::Response& response) {
    const Json answer = or_error([&] { return model.score(request.body); });
    response.status = answer.contains("error") ? 422 : 200;
    response.set_content(answer.dump(), "application/json");
  });
  if (!server.bind_to_port("127.0.0.1", port))
    throw Unfit("port " + std::to_string(port) + " cannot be opened");
  std::cerr << "listening on 127.0.0.1:" << port << std::endl;
  server.listen_after_bind();
}
#else
void answer_http(Model&, int) {
  throw Unfit("--port: built without cpp-httplib: install libcpp-httplib-dev and build again");
}
#endif

int number_behind(const std::string& option, int i, int argc, char** argv) {
  int value = 0;
  const std::string text = i + 1 < argc ? argv[i + 1] : "";
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc() || read.ptr != text.data() + text.size() || value < 1)
    throw Unfit(option + ": wanted a positive number, got '" + text + "'");
  return value;
}

int run(int argc, char** argv) {
  std::string folder;
  int port = 0, threads = 1;
  bool only_features = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--port")
      port = number_behind(word, i++, argc, argv);
    else if (word == "--threads")
      threads = number_behind(word, i++, argc, argv);
    else if (word == "--features")
      only_features = true;
    else if (word[0] != '-' && folder.empty())
      folder = word;
    else
      throw Unfit(std::string("what is '") + word + "'?\n" + kUsage);
  }
  if (folder.empty()) throw Unfit(kUsage);
  if (port && only_features) throw Unfit("--features answers standard input: leave out --port");
  at::set_num_threads(threads);
  Model model(folder, only_features);
  if (port)
    answer_http(model, port);
  else
    answer_lines(model, only_features);
  return 0;
}

}  // namespace serve

int main(int argc, char** argv) {
  try {
    return serve::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "serve: " << error.what() << std::endl;
  }
  return 2;
}
