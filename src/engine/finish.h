// Why an answer ended.
#pragma once

namespace dg {

enum class FinishReason {
  kStop,       // a stop id, a stop text, or the grammar's end
  kLength,     // max_tokens
  kContext,    // the context is full
  kCancelled,  // by the client, an operator or a shutdown
  kDeadline,   // the request's time was over
  kError,      // the model or a device failed
};
const char* finish_reason_name(FinishReason reason);  // "stop", "length", "context", "cancelled", "deadline", "error"

}  // namespace dg
