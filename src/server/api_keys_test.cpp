#include "server/api_keys.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <set>

#include "server/http_test_client.h"

namespace dg {
namespace {

HttpRequest with_header(const std::string& name, const std::string& value) {
  HttpRequest request;
  request.headers.emplace_back(name, value);
  return request;
}

class ApiKeysTest : public ::testing::Test {
 protected:
  Result<std::shared_ptr<const ApiKeys>> load(const std::string& text, mode_t mode = 0600) {
    std::ofstream(path()) << text;
    ::chmod(path().c_str(), mode);
    return ApiKeys::load(path());
  }
  std::string error(const std::string& text, mode_t mode = 0600) {
    auto keys = load(text, mode);
    return keys.ok() ? "no error" : keys.error().message;
  }
  std::string path() const { return folder_.file("keys"); }
  testing_http::TestFolder folder_;
};

TEST_F(ApiKeysTest, GeneratesKeysThatAreFound) {
  auto alice = ApiKeys::generate("alice", Role::kUser, "team-a"), root = ApiKeys::generate("root", Role::kAdmin, "");
  ASSERT_TRUE(alice.ok() && root.ok());
  EXPECT_EQ(alice->key.size(), 43u);
  EXPECT_TRUE(alice->key.starts_with("dg-"));
  EXPECT_EQ(alice->key.find_first_not_of("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 3), std::string::npos);
  EXPECT_EQ(alice->line.find(alice->key.substr(3)), std::string::npos);  // the file does not give the key away
  auto keys = load("# who may\n\n" + alice->line + "  # a comment\r\n" + root->line);
  ASSERT_TRUE(keys.ok()) << keys.error().message;
  auto found = (*keys)->find(with_header("authorization", "Bearer " + alice->key));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->name, "alice");
  EXPECT_EQ(found->tenant, "team-a");
  EXPECT_EQ(found->role, Role::kUser);
  found = (*keys)->find(with_header("x-api-key", root->key));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->tenant, "root");
  EXPECT_EQ(found->role, Role::kAdmin);
  EXPECT_TRUE((*keys)->find(with_header("authorization", "bearer  " + root->key)));
}

TEST_F(ApiKeysTest, RefusesWrongKeys) {
  auto alice = ApiKeys::generate("alice", Role::kUser, "");
  auto keys = load(alice->line);
  ASSERT_TRUE(keys.ok());
  std::string wrong = alice->key;
  wrong.back() = wrong.back() == 'a' ? 'b' : 'a';
  const std::string empty, longest(100000, 'a'), word = "Bearer";
  for (const std::string& value : {empty, wrong, alice->key.substr(1), alice->key + "x", longest, word}) {
    EXPECT_FALSE((*keys)->find(with_header("authorization", "Bearer " + value))) << value.substr(0, 60);
    EXPECT_FALSE((*keys)->find(with_header("x-api-key", value))) << value.substr(0, 60);
  }
  EXPECT_FALSE((*keys)->find(with_header("authorization", "Basic " + alice->key)));
  EXPECT_FALSE((*keys)->find(HttpRequest{}));
}

TEST_F(ApiKeysTest, KeysAreDifferentAndUseEveryCharacter) {
  std::set<std::string> keys;
  std::set<char> characters;
  for (int i = 0; i < 200; ++i) {
    auto made = ApiKeys::generate("n", Role::kUser, "");
    keys.insert(made->key);
    characters.insert(made->key.begin() + 3, made->key.end());
  }
  EXPECT_EQ(keys.size(), 200u);
  EXPECT_EQ(characters.size(), 62u);  // 8000 draws: missing one has a chance of 62 * exp(-129)
}

TEST_F(ApiKeysTest, TakesPlainKeys) {
  auto keys = ApiKeys::from_plain({"secret", "", "other"});
  ASSERT_TRUE(keys->find(with_header("authorization", "Bearer secret")));
  EXPECT_EQ(keys->find(with_header("authorization", "Bearer other"))->role, Role::kAdmin);
  EXPECT_FALSE(keys->find(with_header("authorization", "Bearer ")));
  EXPECT_FALSE(keys->find(with_header("x-api-key", "")));
  EXPECT_FALSE(keys->find(with_header("authorization", "Bearer Secret")));
}

TEST_F(ApiKeysTest, NamesFileAndLineOfErrors) {
  const std::string salt(32, 'a'), hash(64, 'b'), good = "alice user - " + salt + " " + hash;
  EXPECT_EQ(error(good), "no error");
  EXPECT_EQ(error(good + "\n" + good), "key file " + path() +
                                           " line 2: name: expected each name once, found 'alice'; "
                                           "make lines with 'dougong keys new NAME'");
  EXPECT_NE(error("\nalice boss - " + salt + " " + hash).find("line 2: role: expected user or admin, found 'boss'"), std::string::npos);
  EXPECT_NE(error("alice user -").find("line 1: fields: expected 5"), std::string::npos);
  EXPECT_NE(error("al/ice user - " + salt + " " + hash).find("line 1: name"), std::string::npos);
  EXPECT_NE(error("alice user t/n " + salt + " " + hash).find("line 1: tenant"), std::string::npos);
  EXPECT_NE(error("alice user - abc " + hash).find("line 1: salt"), std::string::npos);
  EXPECT_NE(error("alice user - " + salt + " " + hash.substr(2)).find("line 1: hash"), std::string::npos);
  EXPECT_NE(error("# nothing\n").find("no key in it"), std::string::npos);
  EXPECT_NE(error(std::string(5 << 20, 'x')).find("larger than"), std::string::npos);
  EXPECT_FALSE(ApiKeys::load("/nowhere/keys").ok());
  EXPECT_FALSE(ApiKeys::load("/tmp").ok());
  EXPECT_FALSE(ApiKeys::generate("a b", Role::kUser, "").ok());
  EXPECT_FALSE(ApiKeys::generate("a", Role::kUser, "b c").ok());
}

TEST_F(ApiKeysTest, ChecksPermissions) {
  const std::string good = "alice user - " + std::string(32, 'a') + " " + std::string(64, 'b');
  EXPECT_NE(error(good, 0620).find("mode 0620 lets other users change it; run 'chmod 600"), std::string::npos);
  EXPECT_NE(error(good, 0602).find("mode 0602"), std::string::npos);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(error(good, 0644), "no error");
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("lets every user read it"), std::string::npos);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(error(good, 0640), "no error");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace dg
