-- Written by distrib-agent hooks slurm install.
local distrib = dofile(@LUA@)

function slurm_job_submit(job, partitions, uid)
    return distrib.submit(job)
end

function slurm_job_modify(job, record, partitions, uid)
    return distrib.modify(job, record)
end

return slurm.SUCCESS
