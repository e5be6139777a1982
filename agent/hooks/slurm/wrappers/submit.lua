-- Slurm's job_submit plugin of distrib: jobs that name an image in their comment are checked against the
-- site list, and rewritten so that they run in a guest. A site that has a job_submit.lua of its own
-- begins it with    local distrib = dofile("/etc/slurm/distrib.lua")
-- and calls distrib.submit(job) and distrib.modify(job, record) in its two functions.
--
-- slurmctld holds its locks meanwhile: an answer is used again for 10 s, one that does not come in 2 s is not
-- waited for again within 30 s, and no command of Slurm is run here (it would wait for those locks).

local query = @QUERY@
local starter = @STARTER@
local held_file = @HELD@
local burst_buffer = @BURST_BUFFER@
local DEFAULT_MIB, LEAST_MIB = 1024, 64
local FRESH_S, AWAY_S, HELD_S, ANSWERS_MOST = 10, 30, 60, 500
local NONE32, NONE64 = 4294967294, 2 ^ 63

local answers, count, away_until = {}, 0, 0
local M = {}

local function image_of(comment)
    for part in (comment or ""):gmatch("[^%s,;]+") do
        local value = part:match("^vm_name=(.*)$")
        if value then return value end
    end
    return nil
end

-- VERDICT, TEXT: "ok" and the image's feature, "no" and the reason, "away" and why nobody could say.
local function ask(image, user)
    if #image > 200 or not image:match("^[%w][%w%._@+-]*$") then
        return "no", "vm_name=" .. image:gsub("[^%w%._@+-]", "?"):sub(1, 60) .. " is no image: ALIAS or UUID, optionally @VERSION"
    end
    if not user:match("^[%w_][%w%._-]*$") then return "no", "image " .. image .. ": no such user" end
    local key, now = image .. " " .. user, os.time()
    local known = answers[key]
    if known and now - known.at < FRESH_S then return known.verdict, known.text end
    if now < away_until then return "away", "the agent did not answer just now" end
    local verdict, text = "away", "the agent's client cannot be run"
    local pipe = io.popen("timeout -k 1 2 " .. query .. " " .. image .. " " .. user .. " 2>/dev/null </dev/null")
    if pipe then
        local line = pipe:read("*l")
        pipe:close()
        local first, rest = (line or "away no answer in 2 s"):match("^(%l+) (.*)$")
        if first == "ok" or first == "no" or first == "away" then verdict, text = first, rest end
    end
    if verdict == "away" then
        away_until = os.time() + AWAY_S
        return verdict, text
    end
    if count >= ANSWERS_MOST then answers, count = {}, 0 end
    answers[key], count = { at = os.time(), verdict = verdict, text = text }, count + 1
    return verdict, text
end

-- Whether some node holds it: true, false, or nil where that is not known. A feature that no node knows
-- would refuse the job.
local function is_held(feature)
    local file = io.open(held_file, "r")
    if not file then return nil end
    local at, text = tonumber(file:read("*l") or ""), file:read("*a") or ""
    file:close()
    if not at or math.abs(os.time() - at) > HELD_S then return nil end
    return text:find("\n" .. feature .. "\n", 1, true) ~= nil or text:sub(1, #feature + 1) == feature .. "\n"
end

local function refuse(text)
    slurm.log_user("distrib: %s", text)
    return slurm.ERROR
end

local function is_set(number)
    return number ~= nil and number < NONE32
end

function M.submit(job)
    local image = image_of(job.comment)
    if not image then return slurm.SUCCESS end
    if not job.script or job.script == "" then
        return refuse("image " .. image .. ": guests run batch jobs, submit it with sbatch")
    end
    if is_set(job.min_nodes) and job.min_nodes > 1 then
        return refuse("image " .. image .. ": a guest has the CPUs of one node, ask for --nodes=1")
    end
    local mib = job.pn_min_memory
    if mib == nil or (mib >= NONE32 and mib < NONE64) or mib > NONE64 * 1.5 then
        if not job.min_mem_per_cpu then job.min_mem_per_node = DEFAULT_MIB end
    elseif mib < LEAST_MIB then
        return refuse(string.format("--mem=%dM: a guest has %dM or more", mib, LEAST_MIB))
    end
    local verdict, text = ask(image, job.user_name or "")
    if verdict == "no" then return refuse(text) end
    local stage = ""
    if verdict == "away" then
        slurm.log_info("distrib: image %s is taken unchecked, its node will look: %s", image, text)
    else
        local held = is_held(text)
        if held then
            if not job.prefer or job.prefer == "" then job.prefer = text end
        elseif held == false and burst_buffer then
            stage = "#VM image=" .. image .. " user=" .. job.user_name .. " feature=" .. text .. "\n"
        end
    end
    job.min_nodes, job.max_nodes = 1, 1
    job.admin_comment = "vm_name=" .. image
    if job.environment ~= nil then job.environment["VM_IMG"] = image end
    job.script = "#!/bin/sh\n" .. stage .. "exec " .. starter .. ' "$0" "$@"\n'
        .. "# distrib: the job itself follows\n" .. job.script
    return slurm.SUCCESS
end

function M.modify(job, record)
    if job.comment == nil then return slurm.SUCCESS end
    local before, after = image_of(record.comment), image_of(job.comment)
    if before == after then return slurm.SUCCESS end
    -- What it prefers, and whether it runs in a guest at all, was settled when it was submitted.
    slurm.log_info("distrib: the image of a job is settled at submission: %s stays", tostring(before))
    return slurm.ERROR
end

return M
