// GET /v1/models and /v1/models/{id}: the names under which the model is served.
#include <fmt/core.h>

#include "server/api/api_context.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

std::string model_json(const ApiContext& context, const std::string& name) {
  return fmt::format(R"({{"id":{},"object":"model","created":{},"owned_by":"dougong","root":{},"parent":null,"max_model_len":{}}})",
                     json_string(name), context.created_s, json_string(context.options.model_path), context.max_model_len());
}

}  // namespace

void add_models_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"GET", "/v1/models", Role::kUser, [context](std::shared_ptr<HttpResponder> responder, HttpRequest) {
                      std::string list;
                      for (const std::string& name : context->options.served_names)
                        list += (list.empty() ? "" : ",") + model_json(*context, name);
                      responder->respond({.body = "{\"object\":\"list\",\"data\":[" + list + "]}"});
                    }});
  for (const std::string& name : context->options.served_names) {
    routes.push_back({"GET", "/v1/models/" + name, Role::kUser, [context, name](std::shared_ptr<HttpResponder> responder, HttpRequest) {
                        responder->respond({.body = model_json(*context, name)});
                      }});
  }
}

}  // namespace dg::api
