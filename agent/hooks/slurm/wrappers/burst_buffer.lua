-- Slurm's burst_buffer plugin of distrib: a job whose image is on no node yet stays in the queue until the
-- first node has it (stage in). Written by distrib-agent hooks slurm install --burst-buffer.
lua_script_name = "burst_buffer.lua"

local stage = @STAGE@

-- IMAGE, USER, FEATURE of the directive that submit.lua wrote; nothing for a directive of somebody else.
local function directive(file)
    local script = io.open(file, "r")
    if not script then return nil end
    local head = script:read(2000) or ""
    script:close()
    return head:match("\n#VM image=([%w][%w%._@+-]*) user=([%w_][%w%._-]*) feature=(img_%x+)\n")
end

function slurm_bb_job_process(file) return slurm.SUCCESS end
function slurm_bb_pools() return slurm.SUCCESS, "" end
function slurm_bb_job_teardown(job, file, hurry) return slurm.SUCCESS, "" end
function slurm_bb_setup(job, uid, pool, size, file, info) return slurm.SUCCESS, "" end

function slurm_bb_data_in(job, file)
    local image, user, feature = directive(file)
    if not image then return slurm.SUCCESS, "" end
    local status = os.execute(stage .. " " .. tostring(job) .. " " .. image .. " " .. user .. " " .. feature .. " >/dev/null 2>&1 </dev/null")
    if status == 0 or status == true then return slurm.SUCCESS, "" end
    return slurm.ERROR, "image " .. image .. " could not be brought"
end

function slurm_bb_real_size(job) return slurm.SUCCESS, "1" end
function slurm_bb_paths(job, file, paths) return slurm.SUCCESS, "" end
function slurm_bb_pre_run(job, file) return slurm.SUCCESS, "" end
function slurm_bb_post_run(job, file) return slurm.SUCCESS, "" end
function slurm_bb_data_out(job, file) return slurm.SUCCESS, "" end
function slurm_bb_get_status() return slurm.SUCCESS, "" end

return slurm.SUCCESS
