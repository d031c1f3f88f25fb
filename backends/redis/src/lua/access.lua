-- Which of the commands in ARGV, each with arguments between spaces, the user who asks may not call. None of them is called.
-- Nothing, where the server cannot tell: before Redis 7.
if not redis.acl_check_cmd then
  return false
end
local refused = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do
    table.insert(words, word)
  end
  if not redis.acl_check_cmd(unpack(words)) then
    table.insert(refused, command)
  end
end
return refused
