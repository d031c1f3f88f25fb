-- Which of the commands in ARGV, each with arguments between spaces, the user who asks may not call, and, with a question mark before it,
-- which the server does not know. None of them is called. Nothing, where the server cannot tell: before Redis 7.
if not redis.acl_check_cmd then
  return false
end
-- A newer server also counts the arguments, so that some more are tried where it says that these are not as many as it takes.
local function may(words)
  local asked, answer
  for _ = 1, 3 do
    asked, answer = pcall(redis.acl_check_cmd, unpack(words))
    if asked then
      return answer
    end
    table.insert(words, '0')
  end
  return nil
end
local refused = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do
    table.insert(words, word)
  end
  local answer = may(words)
  if not answer then
    table.insert(refused, (answer == nil and '?' or '') .. command)
  end
end
return refused
