#include "backends/profile/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>

namespace dg {
namespace {

struct Line {
  std::string label;
  int64_t calls = 0;
  double seconds = 0, bytes = 0, flops = 0, roofline_s = 0;
};

std::string percent_text(double part, double whole) { return whole > 0 && part > 0 ? fmt::format("{:.1f}", 100 * part / whole) : "-"; }

// Three digits whatever the size.
std::string figure(double value) {
  if (value <= 0) return "-";
  return value < 10 ? fmt::format("{:.2f}", value) : value < 100 ? fmt::format("{:.1f}", value) : fmt::format("{:.0f}", value);
}

std::string line_text(const Line& line, double total_s, size_t width) {
  return fmt::format("{:<{}} {:>8} {:>10.2f} {:>6} {:>10} {:>8} {:>8} {:>9} {:>9}\n", line.label, width, line.calls, line.seconds * 1e3,
                     percent_text(line.seconds, total_s),
                     figure(line.seconds * 1e6 / static_cast<double>(std::max<int64_t>(1, line.calls))), figure(line.bytes * 1e-9),
                     figure(line.bytes / line.seconds * 1e-9), figure(line.flops / line.seconds * 1e-9),
                     percent_text(line.roofline_s, line.seconds));
}

}  // namespace

std::string profile_table(const ProfileBackend& profile, const MachineLimits& limits, const std::string& isa, size_t max_rows) {
  const Roofline roofline = limits.roofline(isa);
  std::vector<Line> lines;
  Line total{.label = "all ops"};
  for (const ProfileRow& row : profile.rows()) {
    const double bytes = row.cost.bytes(), flops = row.cost.flops;
    lines.push_back({row.label(), row.calls, row.seconds, bytes, flops, roofline.seconds(bytes, flops, row.shape.type)});
    const Line& line = lines.back();
    total.calls += line.calls, total.seconds += line.seconds, total.bytes += bytes, total.flops += flops;
    total.roofline_s += line.roofline_s;
  }
  std::stable_sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) { return a.seconds > b.seconds; });
  if (lines.size() > max_rows) {
    Line rest{.label = fmt::format("{} more", lines.size() - max_rows)};
    for (size_t i = max_rows; i < lines.size(); i++) {
      const Line& line = lines[i];
      rest.calls += line.calls, rest.seconds += line.seconds, rest.bytes += line.bytes, rest.flops += line.flops;
      rest.roofline_s += line.roofline_s;
    }
    lines.resize(max_rows);
    lines.push_back(std::move(rest));
  }
  size_t width = 24;
  for (const Line& line : lines) width = std::max(width, line.label.size());
  std::string out = fmt::format("{:<{}} {:>8} {:>10} {:>6} {:>10} {:>8} {:>8} {:>9} {:>9}\n", "operation", width, "calls", "ms", "%",
                                "us/call", "GB", "GB/s", "GFLOP/s", "roofline%");
  for (const Line& line : lines) out += line_text(line, total.seconds, width);
  out += line_text(total, total.seconds, width);
  double in_steps = total.seconds;  // host_parallel runs between steps
  for (const ProfileRow& row : profile.rows())
    if (std::string_view(row.shape.op) == "host_parallel") in_steps -= row.seconds;
  const double outside = std::max(0.0, profile.steps_s() - in_steps);
  out += fmt::format(
      "{} steps took {:.3f} s, of it outside of operations {:.3f} s ({} %); between them the device waited {:.3f} s for the "
      "host; first to last operation {:.3f} s\n",
      profile.steps(), profile.steps_s(), outside, percent_text(outside, profile.steps_s()), profile.waited_s(), profile.elapsed_s());
  out += fmt::format("machine: {}\n", limits.summary(isa));
  return out;
}

Result<void> write_profile_trace(const ProfileBackend& profile, const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) return io_error(fmt::format("{}: cannot be written: {}", path, std::strerror(errno)));
  std::string text =
      "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
      "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{\"name\":\"dougong\"}},\n"
      "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":1,\"args\":{\"name\":\"engine\"}}";
  bool good = true;
  auto flush = [&] {
    good = good && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    text.clear();
  };
  std::vector<std::string> names;
  for (const ProfileRow& row : profile.rows()) names.push_back(shape_label(row.shape, 0, 0, 0, 0));  // rows stand in args
  // Viewers nest events of one thread by time; a parent that begins with its first child must stand before it.
  const std::vector<ProfileEvent>& events = profile.events();
  std::vector<size_t> order(events.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (events[a].start_ns != events[b].start_ns) return events[a].start_ns < events[b].start_ns;
    return events[a].duration_ns > events[b].duration_ns;
  });
  for (size_t i : order) {
    const ProfileEvent& e = events[i];
    text += fmt::format(",\n{{\"name\":\"{}\",\"cat\":\"{}\",\"ph\":\"X\",\"pid\":1,\"tid\":1",
                        e.row == ProfileEvent::kWait   ? "device waits for the host"
                        : e.row == ProfileEvent::kStep ? "step"
                                                       : names[static_cast<size_t>(e.row)],
                        e.row == ProfileEvent::kWait   ? "gap"
                        : e.row == ProfileEvent::kStep ? "step"
                                                       : "op");
    text += fmt::format(",\"ts\":{:.3f},\"dur\":{:.3f},\"args\":{{\"tokens\":{}", static_cast<double>(e.start_ns) * 1e-3,
                        static_cast<double>(e.duration_ns) * 1e-3, e.tokens);
    if (e.bytes > 0) text += fmt::format(",\"bytes\":{:.0f}", e.bytes);
    if (e.flops > 0) text += fmt::format(",\"flops\":{:.0f}", e.flops);
    text += "}}";
    if (text.size() > (size_t{1} << 20)) flush();
  }
  text += fmt::format("\n],\"otherData\":{{\"dropped_events\":\"{}\"}}}}\n", profile.dropped_events());
  flush();
  good = std::fclose(file) == 0 && good;
  if (!good) return io_error(fmt::format("{}: cannot be written to its end: {}; is the disk full?", path, std::strerror(errno)));
  return {};
}

}  // namespace dg
