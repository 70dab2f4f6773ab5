# The environment of a JURECA login after `jutil env activate -p training`.
export SYSTEMNAME=jurecadc
export PROJECT=/p/project1/training PROJECT_training=/p/project1/training
export SCRATCH=/p/scratch/training SCRATCH_training=/p/scratch/training
export BUDGET_ACCOUNTS=training
export LANG=C.UTF-8
PATH=/p/software/jaxway/bin:$PATH
