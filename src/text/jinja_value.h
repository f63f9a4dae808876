// Values of the Jinja interpreter, with Python's semantics of truth, equality, order and printing.
//
// Ownership: lists, dicts and callable objects live in the Heap of one rendering and Values point into it. So cycles
// (`ns.self = ns`) do not leak and destruction never recurses, however deeply a hostile template nests. Strings are
// reference counted because templates build prompts by repeated concatenation. The Heap is also the meter: each piece of
// work and each byte created is charged, and running out ends the rendering with an error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json_fwd.h"

namespace dg::jinja {

// Thrown inside the interpreter only; JinjaTemplate turns it into an Error. line 0: the innermost statement adds its own.
struct Failure {
  std::string message;
  int line = 0;
};

enum class Kind : uint8_t { kUndefined, kNone, kBool, kInt, kFloat, kString, kList, kTuple, kDict, kNamespace, kObject };

struct List;
struct Dict;
struct Args;
class Interpreter;
class Value;

// Something callable or with attributes of its own: a macro, a bound method, a builtin, `loop`, a cycler, a joiner.
struct Object {
  virtual ~Object() = default;
  virtual std::string describe() const = 0;
  virtual Value call(Interpreter& in, const Args& args);            // default: Failure
  virtual Value attribute(Interpreter& in, std::string_view name);  // default: undefined
};

class Value {
 public:
  Value() : integer_(0) {}
  static Value undefined(std::string hint);  // hint: the sentence of the error when it is used
  static Value none() { return Value(Kind::kNone); }
  static Value boolean(bool b);
  static Value integer(int64_t i);
  static Value real(double d);
  static Value large_integer(uint64_t i);  // beyond int64: a float that prints all its digits
  static Value string(std::string s);
  static Value list(List* list, Kind kind = Kind::kList);
  static Value dict(Dict* dict, Kind kind = Kind::kDict);
  static Value object(Object* object);

  Kind kind() const { return kind_; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_bool() const { return kind_ == Kind::kBool; }
  bool is_sequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }  // with items()
  bool is_dict() const { return kind_ == Kind::kDict; }
  bool is_integer() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }  // Python: bool is an int
  bool is_number() const { return is_integer() || kind_ == Kind::kFloat; }

  bool as_bool() const { return integer_ != 0; }
  int64_t as_integer() const { return integer_; }  // kInt and kBool
  double as_real() const { return kind_ == Kind::kFloat ? real_ : static_cast<double>(integer_); }
  const std::string& text() const { return *text_; }          // kString; kUndefined: the hint
  const std::string* written() const { return text_.get(); }  // kFloat: the digits of a large_integer, else null
  std::vector<Value>& items() const;                          // kList, kTuple
  Dict& dict() const { return *dict_; }                       // kDict, kNamespace
  Object* object() const { return object_; }                  // kObject
  bool same_object(const Value& other) const { return kind_ == other.kind_ && list_ == other.list_; }

 private:
  explicit Value(Kind kind) : kind_(kind), integer_(0) {}

  Kind kind_ = Kind::kUndefined;
  union {
    int64_t integer_;
    double real_;
    List* list_;
    Dict* dict_;
    Object* object_;
  };
  std::shared_ptr<const std::string> text_;
};

struct List {
  std::vector<Value> items;
};

// Arguments of a call, evaluated.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // insertion order, as in Python
};

class Heap {
 public:
  Heap(int64_t max_steps, size_t max_created_bytes) : steps_left_(max_steps), bytes_left_(max_created_bytes) {}

  void charge(size_t steps);
  void charge_bytes(size_t bytes);
  void charge_search(size_t text, size_t pattern) { charge(text / 16 + text / 1024 * pattern); }  // worst case of find()

  Value string(std::string s);  // charged
  Value list(std::vector<Value> items, Kind kind = Kind::kList);
  Value dict(Kind kind = Kind::kDict);
  template <class T>
  T* adopt(std::unique_ptr<T> object) {
    charge_bytes(sizeof(T));
    T* raw = object.get();
    objects_.push_back(std::move(object));
    return raw;
  }
  Value from_json(const Json& json, int depth = 0);

 private:
  int64_t steps_left_;
  size_t bytes_left_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::vector<std::unique_ptr<Object>> objects_;
};

const char* type_name(const Value& value);  // as Python names it: 'str', 'NoneType'
bool truth(const Value& value);
bool equal(Heap& heap, const Value& a, const Value& b, int depth = 0);
bool less(Heap& heap, const Value& a, const Value& b, const char* op, int depth = 0);  // Failure when there is no order
bool contains(Heap& heap, const Value& container, const Value& item);

// str(x) and repr(x); of undefined: "" and "Undefined".
std::string to_text(Heap& heap, const Value& value);
void append_repr(Heap& heap, const Value& value, std::string& out, int depth = 0);
std::string real_text(double d);  // repr of a float: 1.0, 1e-05, inf

Value* find(Heap& heap, Dict& dict, const Value& key);  // null when absent; Failure when the key cannot be hashed
Value* find_text(Heap& heap, Dict& dict, std::string_view key);
void assign(Heap& heap, Dict& dict, const Value& key, Value value);
void assign_text(Heap& heap, Dict& dict, std::string_view key, Value value);

// The items a `for` visits: list items, characters, dict keys. Failure for anything else.
std::vector<Value> iterate(Heap& heap, const Value& value);
size_t length(Heap& heap, const Value& value);

// json.dumps(ensure_ascii=...) as transformers' tojson calls it.
struct JsonStyle {
  int indent = -1;
  std::string indent_text;  // when indent is a string in Python
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
std::string to_json(Heap& heap, const Value& value, const JsonStyle& style);

}  // namespace dg::jinja
