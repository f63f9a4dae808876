#include "checks.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <sstream>

namespace dg::structure {
namespace {

namespace fs = std::filesystem;

struct SourceFile {
  std::string path;  // from src/, with '/'
  std::vector<std::string> lines;
};

std::vector<std::string> read_lines(const fs::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::vector<SourceFile> source_files(const fs::path& root) {
  static const std::set<std::string> kExtensions = {".h", ".hpp", ".inc", ".cpp", ".cc", ".c", ".cu", ".cuh", ".S"};
  std::vector<SourceFile> files;
  for (const auto& entry : fs::recursive_directory_iterator(root / "src")) {
    if (!entry.is_regular_file() || !kExtensions.count(entry.path().extension().string())) continue;
    files.push_back({fs::relative(entry.path(), root / "src").generic_string(), read_lines(entry.path())});
  }
  std::sort(files.begin(), files.end(), [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
  return files;
}

bool is_header(const std::string& path) { return path.ends_with(".h") || path.ends_with(".hpp") || path.ends_with(".cuh"); }
bool is_test(const std::string& path) { return path.find("_test.") != std::string::npos; }

// Folder of the table in which `path` (from src/) stands, or "".
std::string floor_of(const std::string& path, const std::vector<Floor>& table) {
  for (const Floor& floor : table)
    if (path.starts_with(floor.folder + "/")) return floor.folder;
  return "";
}

// Everything that `folder` may include, itself among it.
std::set<std::string> allowed(const std::string& folder, bool test, const std::vector<Floor>& table) {
  std::set<std::string> reached;
  std::function<void(const std::string&)> add = [&](const std::string& name) {
    if (!reached.insert(name).second) return;
    for (const Floor& floor : table) {
      if (floor.folder != name) continue;
      for (const std::string& used : floor.may_use) {
        if (used != "*") {
          add(used);
        } else {
          for (const Floor& any : table) reached.insert(any.folder);
        }
      }
    }
  };
  add(folder);
  for (const Floor& floor : table)
    if (test && floor.folder == folder)
      for (const std::string& used : floor.tests_may_use) add(used);
  return reached;
}

struct Include {
  std::string target;
  bool quoted;
  size_t line;
};

std::vector<Include> includes_of(const SourceFile& file) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*(["<])([^">]+)[">])");
  std::vector<Include> found;
  for (size_t i = 0; i < file.lines.size(); i++) {
    std::smatch match;
    if (file.lines[i].find('#') == std::string::npos || !std::regex_search(file.lines[i], match, kInclude)) continue;
    found.push_back({match[2].str(), match[1].str() == "\"", i + 1});
  }
  return found;
}

std::string at(const std::string& path, size_t line) { return "src/" + path + ":" + std::to_string(line) + ": "; }

std::vector<std::string> split(const std::string& text, const std::string& separators) {
  std::vector<std::string> words;
  std::string word;
  for (char c : text + separators[0]) {
    if (separators.find(c) == std::string::npos) {
      word += c;
    } else if (!word.empty()) {
      words.push_back(word);
      word.clear();
    }
  }
  return words;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "nothing" : text;
}

}  // namespace

Problems check_includes(const fs::path& root, const std::vector<Floor>& table) {
  Problems problems;
  for (const SourceFile& file : source_files(root)) {
    std::string floor = floor_of(file.path, table);
    if (floor.empty()) continue;  // check_folders tells
    std::set<std::string> may = allowed(floor, is_test(file.path), table);
    for (const Include& include : includes_of(file)) {
      bool in_tree = fs::exists(root / "src" / include.target);
      if (!in_tree && include.quoted)
        problems.push_back(at(file.path, include.line) + "\"" + include.target + "\" is no file of src/; write the path from src/");
      if (!in_tree) continue;
      std::string target = floor_of(include.target, table);
      if (!target.empty() && !may.count(target))
        problems.push_back(at(file.path, include.line) + floor + "/ may not include " + target + "/ (" + include.target + ")");
    }
  }
  return problems;
}

Problems check_cycles(const fs::path& root) {
  std::map<std::string, std::vector<std::string>> graph;
  for (const SourceFile& file : source_files(root))
    for (const Include& include : includes_of(file))
      if (fs::exists(root / "src" / include.target)) graph[file.path].push_back(include.target);
  Problems problems;
  enum State { kNew, kOpen, kDone };
  std::map<std::string, State> state;
  std::vector<std::string> trail;
  std::function<void(const std::string&)> visit = [&](const std::string& path) {
    state[path] = kOpen;
    trail.push_back(path);
    for (const std::string& next : graph[path]) {
      if (state[next] == kNew) visit(next);
      if (state[next] != kOpen) continue;
      std::string circle;
      for (auto it = std::find(trail.begin(), trail.end(), next); it != trail.end(); ++it) circle += *it + " -> ";
      problems.push_back("include cycle: " + circle + next);
    }
    trail.pop_back();
    state[path] = kDone;
  };
  std::vector<std::string> starts;
  for (const auto& [path, unused] : graph) starts.push_back(path);
  for (const std::string& path : starts)
    if (state[path] == kNew) visit(path);
  return problems;
}

Problems check_folders(const fs::path& root, const std::vector<Floor>& table) {
  Problems problems;
  for (const SourceFile& file : source_files(root))
    if (floor_of(file.path, table).empty())
      problems.push_back("src/" + file.path + ": its folder has no row in docs/structure.md and tests/structure/floors.h");
  for (const Floor& floor : table)
    if (!fs::is_directory(root / "src" / floor.folder)) problems.push_back("src/" + floor.folder + "/: in the table, but no such folder");
  return problems;
}

Problems check_table(const std::vector<Floor>& table) {
  Problems problems;
  std::set<std::string> above;
  for (const Floor& floor : table) {
    for (const std::string& used : floor.may_use)
      if (used != "*" && !above.count(used)) problems.push_back(floor.folder + "/ uses " + used + "/, which stands no higher");
    above.insert(floor.folder);
  }
  return problems;
}

Problems check_document(const fs::path& document, const std::vector<Floor>& table) {
  Problems problems;
  std::string name = document.filename().string();
  std::vector<std::string> lines = read_lines(document);
  if (lines.empty()) return {name + ": missing or empty"};
  if (lines.size() > 60) problems.push_back(name + ": " + std::to_string(lines.size()) + " lines, at most 60");
  size_t row = 0;
  bool inside = false;
  for (const std::string& line : lines) {
    if (line.starts_with("| `src/` |")) inside = true;
    if (!line.starts_with("|")) inside = false;
    if (!inside || !line.starts_with("| `") || line.starts_with("| `src/`")) continue;
    std::vector<std::string> cells = split(line, "|");
    if (cells.size() < 3) {
      problems.push_back(name + ": a row with fewer than three cells: " + line);
      continue;
    }
    std::string folder = split(cells[0], " `")[0];
    if (folder.ends_with("/")) folder.pop_back();
    std::vector<std::string> uses = split(cells[2], ", ");
    if (uses == std::vector<std::string>{"nothing"}) uses.clear();
    if (uses == std::vector<std::string>{"everything"}) uses = {"*"};
    if (row >= table.size() || table[row].folder != folder)
      problems.push_back(name + ": row " + std::to_string(row + 1) + " is " + folder + "/, floors.h has " +
                         (row < table.size() ? table[row].folder + "/" : std::string("no such row")));
    else if (table[row].may_use != uses)
      problems.push_back(name + ": " + folder + "/ may use " + join(uses) + "; floors.h has " + join(table[row].may_use));
    row++;
  }
  if (row < table.size()) problems.push_back(name + ": no row for " + table[row].folder + "/");
  return problems;
}

Problems check_targets(const fs::path& cmake_lists, const std::vector<Floor>& table) {
  std::ostringstream text;
  for (const std::string& line : read_lines(cmake_lists)) text << line.substr(0, line.find('#')) << ' ';
  std::string content = text.str();
  struct Target {
    std::string folder;
    std::vector<std::string> deps, test_deps;
  };
  std::map<std::string, Target> targets;
  static const std::regex kFloor(R"(dg_floor\(([^)]*)\))");
  static const std::set<std::string> kWords = {"RECURSE", "DIR", "DEPS", "LIBS", "EXCLUDE", "TEST_DEPS", "TEST_LIBS"};
  for (std::sregex_iterator it(content.begin(), content.end(), kFloor), end; it != end; ++it) {
    std::vector<std::string> words = split((*it)[1].str(), " ");
    Target target{words[0], {}, {}};
    std::string part;
    for (size_t i = 1; i < words.size(); i++) {
      if (kWords.count(words[i])) part = words[i];
      else if (part == "DIR") target.folder = words[i];
      else if (part == "DEPS") target.deps.push_back(words[i]);
      else if (part == "TEST_DEPS") target.test_deps.push_back(words[i]);
    }
    targets[words[0]] = target;
  }
  Problems problems;
  for (const Floor& floor : table)
    if (std::none_of(targets.begin(), targets.end(), [&](const auto& t) { return t.second.folder == floor.folder; }))
      problems.push_back("src/CMakeLists.txt: no dg_floor for " + floor.folder + "/");
  for (const auto& [name, target] : targets) {
    auto check = [&](const std::vector<std::string>& deps, bool test) {
      std::set<std::string> may = allowed(target.folder, test, table);
      for (const std::string& dep : deps) {
        auto found = targets.find(dep);
        if (found == targets.end()) problems.push_back("src/CMakeLists.txt: " + name + " depends on " + dep + ", which is no floor");
        else if (!may.count(found->second.folder)) problems.push_back("src/CMakeLists.txt: " + name + " may not depend on " + dep);
      }
    };
    check(target.deps, false);
    check(target.test_deps, true);
  }
  return problems;
}

Problems check_file_sizes(const fs::path& root, size_t max_lines) {
  Problems problems;
  for (const SourceFile& file : source_files(root)) {
    bool generated = !file.lines.empty() && file.lines[0].find("Generated by tools/") != std::string::npos;
    if (!generated && file.lines.size() > max_lines)
      problems.push_back("src/" + file.path + ": " + std::to_string(file.lines.size()) + " lines, at most " + std::to_string(max_lines));
  }
  return problems;
}

Problems check_accelerator_switches(const fs::path& root) {
  static const std::regex kSwitch(R"(^\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|ASCEND|MLU|USE_))");
  Problems problems;
  for (const SourceFile& file : source_files(root)) {
    if (file.path.starts_with("backends/")) continue;
    for (size_t i = 0; i < file.lines.size(); i++)
      if (file.lines[i].find('#') != std::string::npos && std::regex_search(file.lines[i], kSwitch))
        problems.push_back(at(file.path, i + 1) + "an accelerator is chosen by the preprocessor above backends/: " + file.lines[i]);
  }
  return problems;
}

Problems check_light_headers(const fs::path& root) {
  Problems problems;
  for (const SourceFile& file : source_files(root)) {
    if (!is_header(file.path) || file.path == "base/json.h") continue;
    for (const Include& include : includes_of(file))
      if (include.target == "base/json.h" || include.target == "nlohmann/json.hpp")
        problems.push_back(at(file.path, include.line) + "a header includes " + include.target + "; include base/json_fwd.h");
  }
  return problems;
}

}  // namespace dg::structure
