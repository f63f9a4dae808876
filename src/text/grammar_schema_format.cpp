// Formats of JSON schema as regular expressions over the whole string.
#include <fmt/core.h>

#include "text/grammar_schema_parts.h"

namespace dg::grammar {
namespace {

#define DG_YEAR_LEAP "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
#define DG_DATE                                                                                         \
  "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|" \
  "02-(?:0[1-9]|1[0-9]|2[0-8]))|" DG_YEAR_LEAP "-02-29)"
#define DG_TIME "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define DG_OCTET "(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
#define DG_LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?"
#define DG_DOMAIN_LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
#define DG_URI_CHAR "(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"

struct Format {
  const char* name;
  const char* pattern;
};

constexpr Format kFormats[] = {
    {"date", DG_DATE},
    {"time", DG_TIME},
    {"date-time", DG_DATE "T" DG_TIME},
    {"uuid", "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"},
    {"email", "[A-Za-z0-9_%+-]+(?:\\.[A-Za-z0-9_%+-]+)*@(?:" DG_DOMAIN_LABEL "\\.)+[A-Za-z]{2,18}"},
    {"hostname", DG_LABEL "(?:\\." DG_LABEL "){0,3}"},
    {"ipv4", DG_OCTET "(?:\\." DG_OCTET "){3}"},
    {"uri", "[a-z][a-z0-9+.-]{1,15}://" DG_DOMAIN_LABEL "(?:\\." DG_DOMAIN_LABEL ")*(?::[1-9][0-9]{0,3})?(?:/" DG_URI_CHAR
            "*)?(?:\\?" DG_URI_CHAR "*)?(?:#" DG_URI_CHAR "*)?"},
};

#undef DG_YEAR_LEAP
#undef DG_DATE
#undef DG_TIME
#undef DG_OCTET
#undef DG_LABEL
#undef DG_DOMAIN_LABEL
#undef DG_URI_CHAR

}  // namespace

const char* format_pattern(std::string_view format) {
  for (const Format& known : kFormats)
    if (format == known.name) return known.pattern;
  return nullptr;
}

const char* known_formats() { return "date, time, date-time, uuid, email, hostname, ipv4 or uri"; }

}  // namespace dg::grammar
